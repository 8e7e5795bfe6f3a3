//! What crosses the wall: frames of a kind, numbers and bytes. The same bytes could go through a socket.
//!
//! A frame is its length (4 bytes, of what follows), its kind (1 byte), then its fields in order: numbers of 8 bytes, flags of 1
//! byte, strings as 4 bytes of length and the bytes; all little-endian. New kinds, and new fields at the end of a kind, may be
//! added: a reader skips what it does not know.
//!
//! One file, although it is long: the list of all kinds is the whole wall, and a third of it documents the fields.

/// Appends frames and reads them back.
macro_rules! frames {
    (
        $(#[$outer:meta])*
        $name:ident {
            $( $(#[$doc:meta])* $kind:literal $variant:ident { $( $(#[$field_doc:meta])* $field:ident : $type:tt ),* $(,)? } )*
        }
    ) => {
        $(#[$outer])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum $name<'a> {
            $( $(#[$doc])* $variant { $( $(#[$field_doc])* $field: frames!(@type 'a $type) ),* }, )*
            /// A kind that this version does not know.
            Unknown(std::marker::PhantomData<&'a ()>),
        }

        impl<'a> $name<'a> {
            /// Appends the frame.
            pub fn write(&self, out: &mut Vec<u8>) {
                let start = out.len();
                out.extend_from_slice(&[0; 4]);
                match self {
                    $( Self::$variant { $( $field ),* } => {
                        out.push($kind);
                        $( frames!(@write out $type $field); )*
                    } )*
                    Self::Unknown(_) => out.push(0),
                }
                let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
                out[start..start + 4].copy_from_slice(&length.to_le_bytes());
            }

            /// Takes the first frame off `bytes`. Returns `None` at the end, or if the rest is not a frame.
            #[must_use]
            pub fn read(bytes: &mut &'a [u8]) -> Option<Self> {
                let body = take(bytes, 4).and_then(|length| {
                    take(bytes, u32::from_le_bytes(length.try_into().ok()?) as usize)
                })?;
                let (&kind, rest) = body.split_first()?;
                #[allow(unused_mut, unused_variables, reason = "kinds without fields")]
                let mut fields = rest;
                Some(match kind {
                    $( $kind => Self::$variant { $( $field: frames!(@read fields $type) ),* }, )*
                    _ => Self::Unknown(std::marker::PhantomData),
                })
            }
        }
    };
    (@type $l:lifetime number) => { u64 };
    (@type $l:lifetime flag) => { bool };
    (@type $l:lifetime text) => { &$l str };
    (@type $l:lifetime bytes) => { &$l [u8] };
    (@type $l:lifetime later) => { &$l [u8] };
    (@type $l:lifetime maybe) => { Option<&$l [u8]> };
    (@write $out:ident number $field:ident) => { $out.extend_from_slice(&$field.to_le_bytes()) };
    (@write $out:ident flag $field:ident) => { $out.push(u8::from(*$field)) };
    (@write $out:ident text $field:ident) => { put($out, $field.as_bytes()) };
    (@write $out:ident bytes $field:ident) => { put($out, $field) };
    (@write $out:ident later $field:ident) => { put($out, $field) };
    (@write $out:ident maybe $field:ident) => {{
        $out.push(u8::from($field.is_some()));
        put($out, $field.unwrap_or_default());
    }};
    (@read $in:ident number) => { u64::from_le_bytes(take(&mut $in, 8)?.try_into().ok()?) };
    (@read $in:ident flag) => { take(&mut $in, 1)? != [0] };
    (@read $in:ident text) => { std::str::from_utf8(get(&mut $in)?).ok()? };
    (@read $in:ident bytes) => { get(&mut $in)? };
    // A field that a later version added: the writer of the frame may not know it.
    (@read $in:ident later) => { if $in.is_empty() { &[] } else { get(&mut $in)? } };
    (@read $in:ident maybe) => {{
        let some = take(&mut $in, 1)? != [0];
        let bytes = get(&mut $in)?;
        some.then_some(bytes)
    }};
}

/// Takes the first frame off a library's output, and returns it with its bytes.
pub fn next_to_host<'a>(bytes: &mut &'a [u8]) -> Option<(ToHost<'a>, &'a [u8])> {
    let before = *bytes;
    let frame = ToHost::read(bytes)?;
    Some((frame, &before[..before.len() - bytes.len()]))
}

/// Whether a frame of this kind to a library is a client's call.
#[must_use]
pub fn is_call(kind: u8) -> bool {
    kind == 5
}

/// The numbers in a frame's list of them: handles, calls, objects.
pub fn numbers(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.chunks_exact(8).filter_map(|handle| handle.try_into().ok().map(u64::from_le_bytes))
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}

fn get<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = u32::from_le_bytes(take(bytes, 4)?.try_into().ok()?);
    take(bytes, length as usize)
}

frames! {
    /// The frames that the host sends.
    ToLibrary {
        /// Create the service, from its section of the configuration. Answered by `Initialised` or `Refused`.
        1 Init {
            /// A dictionary in Jelly.
            config: bytes,
            /// Whether this is a trial in a process of its own, which ends after the service has started.
            vetting: flag,
            /// The largest saved state, in bytes.
            quota: number,
            /// How long calls may continue after their client has gone, in milliseconds. For libraries that do not know `Limits`.
            orphans: number,
        }
        /// Start the service, from the state that it saved last. Answered by `Started` or `Refused`.
        2 Start {
            /// The service's own saved state.
            saved: maybe,
            /// Its version.
            version: number,
        }
        /// A client that may do so attaches to a perspective. Answered by `Attached` or `Failed`.
        3 Attach {
            /// Its number from now on.
            attachment: number,
            /// The perspective's name.
            perspective: text,
            /// The identity's name.
            identity: text,
            /// A handle to the client's object, or 0.
            mind: number,
            /// Where the client connects from, for a person to read.
            peer: text,
            /// Whether the client was attached to the previous generation, and does not know of the replacement. A refusal then
            /// ends the attachment.
            again: flag,
            /// The client's mind, in Jelly, if it is not one object; otherwise empty.
            value: later,
            /// The client's objects in the mind, once for each occurrence. Each is counted for the service.
            handles: later,
        }
        /// The attachment has ended, with everything that came by it: no more calls come by it.
        4 Detach {
            /// The attachment.
            attachment: number,
        }
        /// A client's call. Answered by `Answer` or `Failed`, once.
        5 Call {
            /// Its number.
            call: number,
            /// The attachment by which it comes.
            attachment: number,
            /// The library's object that is called, or 0 for the attachment's perspective.
            object: number,
            /// Whether the caller wants an answer.
            answer: flag,
            /// The method.
            method: text,
            /// A tuple in Jelly; references are handles and the library's objects.
            arguments: bytes,
            /// A dictionary in Jelly.
            keywords: bytes,
            /// The handles in both, once for each occurrence: 8 bytes each. The library gives each back by `Release`.
            handles: bytes,
        }
        /// The answer to the library's call.
        6 Answer {
            /// The library's number for it.
            call: number,
            /// In Jelly.
            value: bytes,
            /// The handles in it, as in `Call`.
            handles: bytes,
        }
        /// The error that the library's call has ended with.
        7 Failed {
            /// The library's number for it.
            call: number,
            /// The class of the error.
            class: text,
            /// The error's message.
            message: text,
            /// Details of the error, in Jelly: see `Detail`. Empty if there are none.
            detail: later,
        }
        /// The client that made this call has gone.
        8 Gone {
            /// The host's number for it.
            call: number,
        }
        /// References to one of the library's objects were given back.
        9 Dropped {
            /// The object.
            object: number,
            /// How many.
            count: number,
            /// The connection that had them: a number with it in its upper half.
            had: number,
        }
        /// The answer to `Load`.
        10 Loaded {
            /// The library's number for it.
            request: number,
            /// The saved state, if there is one.
            state: maybe,
            /// Its version; 0 if there is none.
            version: number,
        }
        /// The request has failed: for example, the saved state cannot be loaded.
        11 NotLoaded {
            /// The library's number for it.
            request: number,
            /// Why.
            message: text,
        }
        /// A health check. Answered by `Healthy` or `Refused`.
        12 Health {
            /// A number that the answer repeats.
            request: number,
        }
        /// The last frame: end all tasks, drop everything, and return from `run`.
        13 Stop {}
        /// A change could not be committed: revert this perspective to this state. Answered by `Reverted`.
        14 Revert {
            /// The perspective's name; empty for the service itself.
            perspective: text,
            /// Its last committed state.
            state: maybe,
            /// Its version; 0 if there is none.
            version: number,
        }
        /// The answer to `Data`.
        15 Entries {
            /// The library's number for it.
            request: number,
            /// Keys and values, in order: see `entries`.
            entries: bytes,
            /// Whether there are more in the range.
            more: flag,
            /// The version of the service's data.
            version: number,
        }
        /// The answer to `Write` or `Sync`: it is committed.
        16 Committed {
            /// The library's number for it.
            request: number,
        }
        /// Save everything, answer `Frozen` or `Refused`, and freeze: run none of the service's code until `Thaw`, `Retire` or
        /// `Stop` arrives. Frames that arrive before that are kept, and served then.
        17 Freeze {
            /// A number that the answer repeats.
            request: number,
        }
        /// The replacement has failed: resume.
        18 Thaw {}
        /// Another generation serves. Suspended calls continue to their end, and change no saved state. Then this generation
        /// stops by itself, or earlier if the host sends `Stop`.
        19 Retire {}
        /// Take over objects that an earlier generation has handed out. Comes after `Started`; answered by `Adopted`.
        20 Adopt {
            /// As in `Frozen`.
            objects: bytes,
            /// The highest number that was given to an object.
            numbers: number,
        }
        /// Check whether this saved state can be read. May come before `Init`. Answered by `Tried`.
        21 Try {
            /// The perspective's name; empty for the service itself.
            perspective: text,
            /// Its state.
            state: bytes,
        }
        /// The client has released an attachment's perspective. Objects that came by it stay alive: calls of them still come by
        /// this attachment, until `Detach`.
        22 LetGo {
            /// The attachment.
            attachment: number,
        }
        /// To a generation that takes over: an attachment whose perspective was released before. Not answered.
        23 Linger {
            /// Its number.
            attachment: number,
            /// The perspective's name.
            perspective: text,
            /// The identity's name.
            identity: text,
            /// A handle to the client's object, or 0.
            mind: number,
            /// Where the client connects from, for a person to read.
            peer: text,
            /// The client's mind, as in `Attach`.
            value: later,
            /// The client's objects in it, as in `Attach`.
            handles: later,
        }
        /// The attachment's access was revoked. Calls by it that have not begun must not begin, including those that arrive
        /// behind this frame; a `Detach` follows them. An older library skips this frame, and serves these calls.
        24 Revoke {
            /// The attachment.
            attachment: number,
        }
        /// A client has ended one of its cached objects, after it was told that nobody has a copy any more. The handle is invalid
        /// from now on. Until then, the client may send the object again without its state.
        25 Uncached {
            /// The client's object.
            handle: number,
        }
        /// A stream of one of the service's listeners: a new connection, or one from the previous generation.
        26 Stream {
            /// Its number from now on. Ended by `Closed`.
            stream: number,
            /// The listener's name.
            listener: text,
            /// Its descriptor, which belongs to the host and stays open until `Taken`. The library duplicates it.
            descriptor: number,
            /// Whether it is a TCP socket; otherwise, it is a Unix socket.
            tcp: flag,
            /// Where the client connects from, for a person to read.
            peer: text,
            /// Whether the client speaks TLS.
            tls: flag,
            /// Whether it may switch to TLS by `StartTls`.
            starttls: flag,
            /// The server name that the client requested in TLS; empty if none.
            asked: text,
            /// What the previous generation had of it: see `Carry`.
            state: maybe,
            /// The login that the stream belongs to, or 0. The next two fields describe it.
            login: number,
            /// The identity's name.
            identity: text,
            /// The perspectives' names: a list in Jelly.
            perspectives: bytes,
            /// Whether the client is a proxy that the operator trusts to say whose requests it forwards.
            forwarded: flag,
            /// The key of the certificate that the client presented in TLS, in OpenSSH's format; empty if none.
            certificate: later,
            /// The protocol negotiated in TLS (ALPN); empty if none.
            protocol: later,
            /// How fast it must move: see `Rates`. Empty: as if nothing was set.
            rates: later,
        }
        /// The answer to `Authenticate` or `Remember`: the login has succeeded.
        27 LoggedIn {
            /// The library's number for it.
            request: number,
            /// The login's number from now on. Ended by `LogOut`.
            login: number,
            /// The identity's name.
            identity: text,
            /// The names of its perspectives on this service: a list in Jelly.
            perspectives: bytes,
            /// The token by which it can be resumed, as the answer to `Remember`; otherwise empty.
            token: later,
        }
        /// A refusal, as the answer to `Authenticate`, `StartTls` or another request about a login.
        28 NotLoggedIn {
            /// The library's number for it.
            request: number,
            /// The reason, as the client may be told.
            message: text,
            /// The number of seconds until the next attempt is considered; 0: at once.
            wait: number,
        }
        /// The login's access was revoked. Its streams are already closed. Answered by `LogOut`.
        29 LoginEnded {
            /// The login.
            login: number,
        }
        /// The answer to `StartTls`: from now on, this is the stream. Also the answer to `Attach`: the library can attach on this
        /// stream.
        30 Lent {
            /// The library's number for it.
            request: number,
            /// The stream. The library sends `Taken` when it has duplicated the descriptor.
            stream: number,
            /// A descriptor of a Unix socket, as in `Stream`.
            descriptor: number,
            /// The server name that the client requested in TLS; empty if none.
            asked: text,
            /// As in `Stream`.
            certificate: later,
            /// As in `Stream`.
            protocol: later,
        }
        /// Everything that the previous generation had is here: input of its streams is processed from now on.
        31 Resume {}
        /// The answer to a request for bytes: something to sign, an account.
        32 Told {
            /// The library's number for it.
            request: number,
            /// What was requested.
            bytes: bytes,
        }
        /// To a generation that takes over, before the attachments of the previous one: the copies of clients' objects that the
        /// previous one had. Each of the objects in it counts as given to the library once: the copied ones, and those that they
        /// refer to.
        33 Copies {
            /// As in `Frozen`.
            copies: bytes,
        }
        /// Another version of the service has this perspective from now on. Save what has changed in it; from then on it cannot
        /// be changed, until `Regain`. Answered by `Yielded`.
        34 Yield {
            /// The perspective's name.
            perspective: text,
            /// The error for attempts to change it.
            why: text,
        }
        /// Another version of the service has changed the saved state of this perspective, and no longer has it: reload what is
        /// in memory. Answered by `Regained`.
        35 Regain {
            /// The perspective's name.
            perspective: text,
        }
        /// The limits that the library enforces itself: sent before `Init`, and again when the operator changes them. Not
        /// answered.
        36 Limits {
            /// See [`ServiceLimits`](super::limits::ServiceLimits).
            limits: bytes,
        }
    }
}

frames! {
    /// The frames that a library sends.
    ToHost {
        /// The first frame, before `Init`: a description of the service (see `manifest`).
        1 Manifest {
            /// In Jelly.
            manifest: bytes,
        }
        /// `Init` has succeeded.
        2 Initialised {}
        /// `Start` has succeeded.
        3 Started {}
        /// `Init`, `Start`, `Health` or `Freeze` has failed.
        4 Refused {
            /// Why, for the operator.
            message: text,
        }
        /// `Attach` has succeeded.
        5 Attached {
            /// The attachment.
            attachment: number,
        }
        /// The answer to a call.
        6 Answer {
            /// The host's number for it.
            call: number,
            /// In Jelly; references are the library's objects and handles.
            value: bytes,
            /// The library's objects in it, once for each occurrence: 8 bytes each. Each was counted as handed out, and the host
            /// gives it back by `Dropped`, also if the value reaches nobody.
            objects: bytes,
        }
        /// The error that a call or an `Attach` has ended with.
        7 Failed {
            /// The host's number for the call or the attachment.
            call: number,
            /// The class of the error.
            class: text,
            /// The error's message.
            message: text,
            /// Whether the library is at fault (a panic): then the operator is notified.
            fault: flag,
            /// Details of the error, as in the host's `Failed`.
            detail: later,
        }
        /// A call of a client's object.
        8 Call {
            /// The library's number for it.
            call: number,
            /// The client's object.
            handle: number,
            /// Whether the library wants an answer.
            answer: flag,
            /// The method.
            method: text,
            /// A tuple in Jelly.
            arguments: bytes,
            /// A dictionary in Jelly.
            keywords: bytes,
            /// The attachment by which the library has the client's object; 0 if it does not know.
            attachment: number,
            /// The library's objects in both, as in `Answer`.
            objects: bytes,
        }
        /// References to a client's object are given back.
        9 Release {
            /// The client's object.
            handle: number,
            /// How many.
            count: number,
        }
        /// Requests a perspective's saved state. Answered by `Loaded` or `NotLoaded`.
        10 Load {
            /// A number that the answer repeats.
            request: number,
            /// The perspective's name.
            perspective: text,
        }
        /// A state to commit, before anything that follows is sent to anybody.
        11 Save {
            /// The perspective's name; empty for the service itself.
            perspective: text,
            /// In Jelly.
            state: bytes,
            /// The version that it was made from.
            base: number,
            /// Its own version: `base` plus one.
            version: number,
        }
        /// The service is healthy.
        12 Healthy {
            /// As in the request.
            request: number,
        }
        /// Everything is dropped; `run` returns.
        13 Stopped {}
        /// The caller of one of the library's calls has given up: the answer is no longer wanted.
        14 Forget {
            /// The library's number for it.
            call: number,
            /// The client's object that was called.
            handle: number,
        }
        /// A cached object has changed. Notifies the clients of one connection that have it.
        15 Update {
            /// Any number of that connection, such as an attachment's.
            attachment: number,
            /// The object.
            object: number,
            /// The method of the client's copy that is called, without its prefix.
            method: text,
            /// A tuple in Jelly.
            arguments: bytes,
            /// A dictionary in Jelly.
            keywords: bytes,
            /// The library's objects in both, as in `Answer`.
            objects: bytes,
        }
        /// The answer to `Revert`: everything that follows is based on the reverted state.
        16 Reverted {}
        /// Requests some of the service's data. Answered by `Entries` or `NotLoaded`.
        17 Data {
            /// A number that the answer repeats.
            request: number,
            /// The first key.
            from: bytes,
            /// The first key behind the range.
            to: maybe,
            /// The maximum number of entries.
            limit: number,
            /// Whether the last come first.
            reverse: flag,
        }
        /// Writes some of the service's data, all or nothing. Answered by `Committed` or `NotLoaded`.
        18 Write {
            /// A number that the answer repeats.
            request: number,
            /// The version of the service's data that it was made from.
            base: number,
            /// Keys and values, or nothing to remove them: see `entries`.
            entries: bytes,
        }
        /// Ends an attachment: the client's references by it become dead.
        19 End {
            /// The attachment.
            attachment: number,
        }
        /// The answer to `Freeze`.
        20 Frozen {
            /// As in the request.
            request: number,
            /// The host's numbers of the suspended calls: 8 bytes each.
            calls: bytes,
            /// The objects that clients hold and that can be rebuilt: see `put_object`.
            objects: bytes,
            /// The highest number that was given to an object.
            numbers: number,
            /// How many states this generation has in memory.
            states: number,
            /// Copies of clients' objects: see `put_copy`.
            copies: later,
        }
        /// The answer to `Adopt`.
        21 Adopted {
            /// How many objects could be rebuilt.
            objects: number,
        }
        /// A saved state cannot be read by this version of the service.
        22 Unreadable {
            /// The perspective's name.
            perspective: text,
            /// Why.
            message: text,
        }
        /// The answer to `Try`.
        23 Tried {
            /// Why it cannot be read, in UTF-8; nothing if it can.
            message: maybe,
        }
        /// Directly precedes an `Answer` or a `Failed` that depends on nothing but these states: the answer waits only for their
        /// changes. Without this frame, an answer waits for everything that was sent before it.
        24 Looked {
            /// The call that is answered.
            call: number,
            /// A perspective's name, in UTF-8.
            perspective: maybe,
            /// Whether it depends on the service's own state, too.
            service: flag,
        }
        /// The service takes the streams of this listener.
        25 Listen {
            /// Its name, as in the configuration.
            listener: text,
            /// Whether nobody needs to log in there.
            public: flag,
        }
        /// The library has released a stream.
        26 Closed {
            /// The stream.
            stream: number,
        }
        /// What the next generation continues with: sent during a freeze, or by a generation that is already replaced. The
        /// library releases the stream at `Retire`; after that, with this frame.
        27 Carry {
            /// The stream.
            stream: number,
            /// The request of `Freeze` that it belongs to; 0 if the library is already replaced.
            replacement: number,
            /// What the library wants the next generation to receive; empty if it has done nothing with the stream.
            state: bytes,
        }
        /// Checks a proof of identity. The only frame of its batch. Answered by `LoggedIn` or `NotLoggedIn`; kind 4 by `Told`.
        28 Authenticate {
            /// A number that the answer repeats.
            request: number,
            /// The stream that it came by. From the login on, the stream belongs to it.
            stream: number,
            /// The kind of proof. 1: a password. 2: a token. 3: a public key, which the client has proven to have, as the library
            /// says. 4: a public key, which is answered by `Told`. 5: the signature of that answer. 6: the token of a remembered
            /// login, which belongs to no stream. 7: the certificate that the client presented in TLS, with an empty proof. Keys
            /// are in OpenSSH's text format, signatures in its wire format.
            kind: number,
            /// The name; empty if the proof says whose it is.
            name: text,
            /// The proof.
            secret: bytes,
            /// The address of the client whose request a proxy forwards; empty: the stream's own.
            source: text,
        }
        /// A login has ended: nobody in the library has it any more; or, in reply to `LoginEnded`, nothing comes by it any more.
        29 LogOut {
            /// The login.
            login: number,
            /// How many answers `LoggedIn` with this login the library has received since its last `LogOut` for it: another may
            /// be on its way.
            answers: number,
        }
        /// The client is about to start TLS, which the host handles from here on. Answered by `Lent` or `NotLoggedIn`.
        30 StartTls {
            /// A number that the answer repeats.
            request: number,
            /// The stream.
            stream: number,
        }
        /// Requests a notice when everything before this is committed. Answered by `Committed` or `NotLoaded`.
        31 Sync {
            /// A number that the answer repeats.
            request: number,
        }
        /// The library has duplicated a descriptor that a frame has named. If it is a stream's, the library serves the stream.
        32 Taken {
            /// The stream.
            stream: number,
            /// The host's descriptor, as named in the frame.
            descriptor: number,
        }
        /// Requests a stream to the services that a login has keys for. Answered by `Lent` or `NotLoggedIn`.
        33 Attach {
            /// A number that the answer repeats.
            request: number,
            /// The login.
            login: number,
        }
        /// Lets a login outlive its stream. Answered by `LoggedIn`, with a new login and the token that resumes it (`Authenticate`,
        /// kind 6), or by `NotLoggedIn`. Until `Claimed`, the login ends for good when no generation has it any more.
        34 Remember {
            /// A number that the answer repeats.
            request: number,
            /// The login.
            login: number,
            /// How long it may be unused, in seconds.
            idle: number,
            /// How long it lasts at most, in seconds.
            longest: number,
            /// The address of the client whose request a proxy forwards, as a text; empty: the stream's own.
            source: later,
            /// Not empty: the library knows the answer `LoggedIn`, and says `Claimed` once somebody has the token. Empty: it is an
            /// older one, which is answered by `Told` with the token.
            claims: later,
        }
        /// Ends a login that outlives its stream: its token becomes invalid. Answered by `Told`, or by `NotLoggedIn`.
        35 SignOut {
            /// A number that the answer repeats.
            request: number,
            /// The login.
            login: number,
        }
        /// Requests what is known of the identity that has logged in. Answered by `Told` (an `Account`, in Jelly), or by
        /// `NotLoggedIn`.
        36 Account {
            /// A number that the answer repeats.
            request: number,
            /// The login that asks for it.
            login: number,
        }
        /// Ends one of the identity's own sessions or remembered logins. Answered by `Told`, or by `NotLoggedIn`.
        37 EndOwn {
            /// A number that the answer repeats.
            request: number,
            /// The login that asks for it.
            login: number,
            /// Whether it is a remembered login; otherwise, a session.
            remembered: flag,
            /// Its number.
            number: number,
        }
        /// A user who has logged in changes their own password or keys, and gives their password once more. The only frame of its
        /// batch. Answered by `Told` (the label of a key from now on), or by `NotLoggedIn`.
        38 ChangeOwn {
            /// A number that the answer repeats.
            request: number,
            /// The login that asks for it.
            login: number,
            /// The stream that it came by.
            stream: number,
            /// The address of the client whose request a proxy forwards; empty: the stream's own.
            source: text,
            /// The password.
            proof: bytes,
            /// 1: set another password; 2: add a public key; 3: remove a public key; 4: remove an access token.
            what: number,
            /// Its label; empty: what the key itself says.
            label: text,
            /// The new password, or the key as OpenSSH writes it or in PEM.
            value: bytes,
        }
        /// How much is buffered for a stream: input that was not taken yet, and output that has not left yet. Not sent for every
        /// byte.
        39 Buffered {
            /// The stream.
            stream: number,
            /// The number of bytes.
            bytes: number,
        }
        /// The answer to `Yield`: all changes of the perspective were sent before.
        40 Yielded {
            /// The perspective's name.
            perspective: text,
        }
        /// The answer to `Regain`: what is in memory matches the saved state.
        41 Regained {
            /// The perspective's name.
            perspective: text,
        }
        /// Never sent by a library: a message of the host's own to a connection. A client's object that one generation has was
        /// given to the next one, too.
        /// The token of a new remembered login has gone to its client.
        42 Claimed {
            /// The login.
            login: number,
        }
        255 Retained {
            /// The client's object.
            handle: number,
        }
    }
}

/// Appends an entry of a service's data: a key and its value.
pub fn put_entry(out: &mut Vec<u8>, key: &[u8], value: Option<&[u8]>) {
    put(out, key);
    out.push(u8::from(value.is_some()));
    put(out, value.unwrap_or_default());
}

/// The entries in a frame's list, up to the first malformed one.
pub fn entries(mut bytes: &[u8]) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
    std::iter::from_fn(move || {
        let key = get(&mut bytes)?;
        let some = take(&mut bytes, 1)? != [0];
        let value = get(&mut bytes)?;
        Some((key, some.then_some(value)))
    })
}

/// Appends an object to a list of those that can be rebuilt: its number, how often it was handed out, and the name that it is
/// known by.
pub fn put_object(out: &mut Vec<u8>, object: u64, count: u64, name: &str) {
    out.extend_from_slice(&object.to_le_bytes());
    out.extend_from_slice(&count.to_le_bytes());
    put(out, name.as_bytes());
}

/// The objects in such a list, up to the first malformed one.
pub fn objects(mut bytes: &[u8]) -> impl Iterator<Item = (u64, u64, &str)> {
    std::iter::from_fn(move || {
        let object = u64::from_le_bytes(take(&mut bytes, 8)?.try_into().ok()?);
        let count = u64::from_le_bytes(take(&mut bytes, 8)?.try_into().ok()?);
        Some((object, count, std::str::from_utf8(get(&mut bytes)?).ok()?))
    })
}

/// A copy of a client's object, for the generation that takes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copy<'a> {
    /// The client's object, by the service's number.
    pub handle: u64,
    /// Whether somebody holds the object: then it is given to the next generation, too. If not, it is on its way back to the
    /// client.
    pub held: bool,
    /// The attachments by which it came, as [`numbers`].
    pub by: &'a [u8],
    /// The client's name for its type.
    pub class: &'a str,
    /// Its state, in Jelly. `None`: it is in the mind that the object came in.
    pub state: Option<&'a [u8]>,
    /// The changes since: methods and arguments, as [`entries`].
    pub changes: &'a [u8],
    /// The client's objects in its state, as [`numbers`]: once for each occurrence.
    pub references: &'a [u8],
}

/// Appends a copy of a client's object to a list of them.
pub fn put_copy(out: &mut Vec<u8>, copy: &Copy<'_>) {
    out.extend_from_slice(&copy.handle.to_le_bytes());
    out.extend([u8::from(copy.held), u8::from(copy.state.is_some())]);
    for part in [copy.by, copy.class.as_bytes(), copy.state.unwrap_or_default(), copy.changes, copy.references] {
        put(out, part);
    }
}

/// The copies in such a list, up to the first malformed one.
pub fn copies(mut bytes: &[u8]) -> impl Iterator<Item = Copy<'_>> {
    std::iter::from_fn(move || {
        let handle = u64::from_le_bytes(take(&mut bytes, 8)?.try_into().ok()?);
        let (held, some) = (take(&mut bytes, 1)? != [0], take(&mut bytes, 1)? != [0]);
        let by = get(&mut bytes)?;
        let class = std::str::from_utf8(get(&mut bytes)?).ok()?;
        let (state, changes, references) = (get(&mut bytes)?, get(&mut bytes)?, get(&mut bytes)?);
        Some(Copy { handle, held, by, class, state: some.then_some(state), changes, references })
    })
}

/// The client's objects that a list of copies hands over, once for each occurrence.
pub fn handed_on(bytes: &[u8]) -> impl Iterator<Item = u64> {
    copies(bytes).flat_map(|copy| copy.held.then_some(copy.handle).into_iter().chain(numbers(copy.references)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_as_written_and_unknown_ones_are_skipped() {
        let call = ToLibrary::Call {
            call: 7,
            attachment: 1,
            object: 0,
            answer: true,
            method: "add",
            arguments: &[1, 0x80, 11, 0x87],
            keywords: &[1, 0x80, 5, 0x87],
            handles: &[],
        };
        let mut bytes = Vec::new();
        call.write(&mut bytes);
        bytes.extend_from_slice(&[3, 0, 0, 0, 200, 1, 2]);
        ToLibrary::Start { saved: None, version: 0 }.write(&mut bytes);
        let mut rest = bytes.as_slice();
        assert_eq!(ToLibrary::read(&mut rest), Some(call));
        assert!(matches!(ToLibrary::read(&mut rest), Some(ToLibrary::Unknown(_))));
        assert_eq!(ToLibrary::read(&mut rest), Some(ToLibrary::Start { saved: None, version: 0 }));
        assert_eq!(ToLibrary::read(&mut rest), None);
    }

    #[test]
    fn truncated_frames_are_ends_and_flipped_bits_never_panic() {
        let mut bytes = Vec::new();
        ToHost::Failed { call: 1, class: "a", message: "b", fault: true, detail: &[] }.write(&mut bytes);
        for end in 0..bytes.len() {
            assert_eq!(ToHost::read(&mut &bytes[..end]), None);
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                let _ = ToHost::read(&mut flipped.as_slice());
            }
        }
    }
}
