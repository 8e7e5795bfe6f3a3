//! What goes across the wall: frames of a kind, numbers and bytes. The same bytes could go through a socket.
//!
//! A frame is its length (4 bytes, what follows), its kind (1 byte), then its fields in order: numbers of 8 bytes,
//! flags of 1, strings as 4 bytes of length and the bytes; all little-endian. New kinds and new fields at the end may
//! be added: a reader passes over what it does not know.

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

            /// Takes the first frame off `bytes`. `None` at the end, or when the rest is no frame.
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
    // A field that came with a later version: who wrote the frame may not know it.
    (@read $in:ident later) => { if $in.is_empty() { &[] } else { get(&mut $in)? } };
    (@read $in:ident maybe) => {{
        let some = take(&mut $in, 1)? != [0];
        let bytes = get(&mut $in)?;
        some.then_some(bytes)
    }};
}

/// Takes the first frame off what a library says, and answers with its bytes, too.
pub fn next_to_host<'a>(bytes: &mut &'a [u8]) -> Option<(ToHost<'a>, &'a [u8])> {
    let before = *bytes;
    let frame = ToHost::read(bytes)?;
    Some((frame, &before[..before.len() - bytes.len()]))
}

/// Whether a frame of this kind to a library is a call of a client's.
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
    /// What the host says.
    ToLibrary {
        /// The first: make the service, from its section of the configuration. Answered by `Initialised` or `Refused`.
        1 Init {
            /// A dictionary in Jelly.
            config: bytes,
            /// Whether this is a trial in a process of its own, which ends after the service has started.
            vetting: flag,
            /// How many bytes a saved state may have.
            quota: number,
            /// How long calls may go on whose clients have gone, in milliseconds. For libraries that do not know `Limits`.
            orphans: number,
        }
        /// Start it, from the state it saved last. Answered by `Started` or `Refused`.
        2 Start {
            /// The service's own saved state.
            saved: maybe,
            /// Its version.
            version: number,
        }
        /// Somebody with the key attaches to a perspective. Answered by `Attached` or `Failed`.
        3 Attach {
            /// Its number from now on.
            attachment: number,
            /// The perspective's name.
            perspective: text,
            /// The identity's name.
            identity: text,
            /// A handle to the client's object, or 0.
            mind: number,
            /// Where the client is, for a person to read.
            peer: text,
            /// Whether it was attached to the generation before this one, and does not know of the change. A refusal
            /// then ends the attachment.
            again: flag,
            /// The client's mind, in Jelly, where it is not one object; empty: it is.
            value: later,
            /// The client's objects in that, once for each time; each is counted for the service.
            handles: later,
        }
        /// The attachment has ended, and everything that came by it: no call comes by it any more.
        4 Detach {
            /// Which.
            attachment: number,
        }
        /// A call of a client's. Answered by `Answer` or `Failed`, once.
        5 Call {
            /// Its number.
            call: number,
            /// By which attachment it comes.
            attachment: number,
            /// An object of the library's, or 0 for the attachment's perspective.
            object: number,
            /// Whether the caller wants an answer.
            answer: flag,
            /// The method.
            method: text,
            /// A tuple in Jelly; references are handles and objects of the library's.
            arguments: bytes,
            /// A dictionary in Jelly.
            keywords: bytes,
            /// The handles in both, once for each time: 8 bytes each. Each is given back by `Release`.
            handles: bytes,
        }
        /// The answer to a call of the library's.
        6 Answer {
            /// The library's number for it.
            call: number,
            /// In Jelly.
            value: bytes,
            /// The handles in it, as in `Call`.
            handles: bytes,
        }
        /// The error to a call of the library's.
        7 Failed {
            /// The library's number for it.
            call: number,
            /// The class of the error.
            class: text,
            /// What it says.
            message: text,
            /// What else is known of it, in Jelly: see `Detail`. Empty: nothing.
            detail: later,
        }
        /// The client that made this call has gone.
        8 Gone {
            /// The host's number for it.
            call: number,
        }
        /// References to an object of the library's were given back.
        9 Dropped {
            /// The object.
            object: number,
            /// How many.
            count: number,
            /// Which connection had them: a number with it in its upper half.
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
        /// The saved state cannot be had.
        11 NotLoaded {
            /// The library's number for it.
            request: number,
            /// Why.
            message: text,
        }
        /// Are you well? Answered by `Healthy`.
        12 Health {
            /// To be handed back.
            request: number,
        }
        /// The last: end all tasks, drop everything, and return from `run`.
        13 Stop {}
        /// A change could not be committed: this perspective's state is this again. Answered by `Reverted`.
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
        /// The answer to `Write`: it is committed.
        16 Committed {
            /// The library's number for it.
            request: number,
        }
        /// Save everything, answer `Frozen` or `Refused`, and stand still: run no code of the service's until `Thaw`,
        /// `Retire` or `Stop` has come. What comes before that is kept, and served then.
        17 Freeze {
            /// To be handed back.
            request: number,
        }
        /// Nothing has come of it: go on.
        18 Thaw {}
        /// Another generation serves. Calls that wait go on to their end, and change nothing that is saved; then this
        /// one stops by itself, or when it is told to.
        19 Retire {}
        /// Take over objects that an earlier generation has handed out. Comes after `Started`; answered by `Adopted`.
        20 Adopt {
            /// As in `Frozen`.
            objects: bytes,
            /// Numbers up to this have been given to objects.
            numbers: number,
        }
        /// Could this saved state be read? May come before `Init`. Answered by `Tried`.
        21 Try {
            /// The perspective's name; empty for the service itself.
            perspective: text,
            /// Its state.
            state: bytes,
        }
        /// The client has let go of an attachment's perspective. Objects that came by it live on: calls of them still
        /// come by this attachment, until `Detach`.
        22 LetGo {
            /// Which.
            attachment: number,
        }
        /// To a generation that takes over: an attachment whose perspective was let go of before. Nothing answers it.
        23 Linger {
            /// Its number.
            attachment: number,
            /// The perspective's name.
            perspective: text,
            /// The identity's name.
            identity: text,
            /// A handle to the client's object, or 0.
            mind: number,
            /// Where the client is, for a person to read.
            peer: text,
            /// The client's mind, as in `Attach`.
            value: later,
            /// The client's objects in it, as in `Attach`.
            handles: later,
        }
        /// What the attachment came by was taken away. Calls by it that have not begun do not begin any more, also those
        /// that come behind this frame; a `Detach` follows them. An older library passes over this, and serves them.
        24 Revoke {
            /// Which.
            attachment: number,
        }
        /// A client has ended a cached object of its own, of which it was told that nobody has a copy any more: its handle names
        /// nothing from now on. Until then the client may send it once more without its state.
        25 Uncached {
            /// The client's object.
            handle: number,
        }
        /// A stream has come by one of the service's listeners: by a new connection, or from the generation before this one.
        26 Stream {
            /// Its number from now on. Ended by `Closed`.
            stream: number,
            /// The listener's name.
            listener: text,
            /// Its descriptor: the host's, and open until `Taken`. The library makes one of its own of it.
            descriptor: number,
            /// Whether that is a socket of TCP's; if not, it is one of Unix's.
            tcp: flag,
            /// Where the client is, for a person to read.
            peer: text,
            /// Whether the client speaks TLS.
            tls: flag,
            /// Whether it may go over to TLS by `StartTls`.
            starttls: flag,
            /// The name that the client asked for by TLS; empty: none.
            asked: text,
            /// What the generation before this one had of it: see `Carry`.
            state: maybe,
            /// The login that the stream belongs to, or 0; its identity, and its perspectives (a list in Jelly).
            login: number,
            /// The identity's name.
            identity: text,
            /// The perspectives' names: a list in Jelly.
            perspectives: bytes,
            /// Whether it is a proxy's, which the operator believes when it says whose requests it passes on.
            forwarded: flag,
            /// The key of the certificate that the client has shown by TLS, as OpenSSH writes it; empty: none.
            certificate: later,
            /// The protocol that was agreed on by TLS (ALPN); empty: none.
            protocol: later,
            /// How fast it has to move: see `Rates`. Empty: as if nobody had said.
            rates: later,
        }
        /// The answer to `Authenticate`: right.
        27 LoggedIn {
            /// The library's number for it.
            request: number,
            /// The login's number from now on. Ended by `LogOut`.
            login: number,
            /// The identity's name.
            identity: text,
            /// The names of its perspectives on this service: a list in Jelly.
            perspectives: bytes,
        }
        /// The answer to `Authenticate`, or to `StartTls`: refused.
        28 NotLoggedIn {
            /// The library's number for it.
            request: number,
            /// What whoever asked may be told.
            message: text,
            /// In how many seconds the next try is looked at; 0: at once.
            wait: number,
        }
        /// What the login came by was taken away. Its streams are closed already. Answered by `LogOut`.
        29 LoginEnded {
            /// Which.
            login: number,
        }
        /// The answer to `StartTls`: from here on, this is the stream; and to `Attach`: here it can be attached.
        30 Lent {
            /// The library's number for it.
            request: number,
            /// The stream. Said to be `Taken` when the library has made a descriptor of its own.
            stream: number,
            /// A descriptor of a Unix socket, as in `Stream`.
            descriptor: number,
            /// The name that the client asked for by TLS; empty: none.
            asked: text,
            /// As in `Stream`.
            certificate: later,
            /// As in `Stream`.
            protocol: later,
        }
        /// All that the generation before this one had is here: what comes by streams of before is served from now on.
        31 Resume {}
        /// The answer to a question that bytes answer: something to be signed, a token, an account.
        32 Told {
            /// The library's number for it.
            request: number,
            /// What it was asked for.
            bytes: bytes,
        }
        /// To a generation that takes over, before those are attached who were to the one before: the copies of clients' objects that
        /// that had. Each of the objects in it counts as given to the library once: the copied ones, and those that they refer to.
        33 Copies {
            /// As in `Frozen`.
            copies: bytes,
        }
        /// Another version of the service has this perspective from now on. What has changed in it is saved; from then on it cannot be
        /// changed, until `Regain`. Answered by `Yielded`.
        34 Yield {
            /// The perspective's name.
            perspective: text,
            /// The error for whoever changes it.
            why: text,
        }
        /// What is saved of this perspective was changed by another version of the service, which has it no longer: whatever is in
        /// memory of it is read again. Answered by `Regained`.
        35 Regain {
            /// The perspective's name.
            perspective: text,
        }
        /// What the library enforces itself: sent before `Init`, and again when the operator changes it. Not answered.
        36 Limits {
            /// See [`ServiceLimits`](super::limits::ServiceLimits).
            limits: bytes,
        }
    }
}

frames! {
    /// What the library says.
    ToHost {
        /// The first, before `Init`: what it is, in Jelly (see `manifest`).
        1 Manifest {
            /// In Jelly.
            manifest: bytes,
        }
        /// `Init` went well.
        2 Initialised {}
        /// `Start` went well.
        3 Started {}
        /// `Init` or `Start` did not.
        4 Refused {
            /// Why, for the operator.
            message: text,
        }
        /// `Attach` went well.
        5 Attached {
            /// Which.
            attachment: number,
        }
        /// The answer to a call.
        6 Answer {
            /// The host's number for it.
            call: number,
            /// In Jelly; references are objects of the library's and handles.
            value: bytes,
            /// The library's objects in it, once for each time: 8 bytes each. Each was counted as handed out, and is
            /// given back by `Dropped`, also if the value goes to nobody.
            objects: bytes,
        }
        /// The error to a call, or to an `Attach`.
        7 Failed {
            /// The host's number for the call or the attachment.
            call: number,
            /// The class of the error.
            class: text,
            /// What it says.
            message: text,
            /// Whether it is the library's fault (a panic): the operator hears of it.
            fault: flag,
            /// What else is known of it, as in the host's `Failed`.
            detail: later,
        }
        /// A call of a client's object.
        8 Call {
            /// The library's number for it.
            call: number,
            /// The client's object.
            handle: number,
            /// Whether an answer is wanted.
            answer: flag,
            /// The method.
            method: text,
            /// A tuple in Jelly.
            arguments: bytes,
            /// A dictionary in Jelly.
            keywords: bytes,
            /// By which attachment the library had the client's object; 0 if it does not know.
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
        /// A perspective's saved state is wanted.
        10 Load {
            /// To be handed back.
            request: number,
            /// The perspective's name.
            perspective: text,
        }
        /// A state to commit, before anything that follows is told to anybody.
        11 Save {
            /// The perspective's name; empty for the service itself.
            perspective: text,
            /// In Jelly.
            state: bytes,
            /// The version that it was made from.
            base: number,
            /// Its own version: one more.
            version: number,
        }
        /// Well.
        12 Healthy {
            /// As it came.
            request: number,
        }
        /// All is dropped; `run` returns.
        13 Stopped {}
        /// A library's call was given up by its caller: its answer is not wanted any more.
        14 Forget {
            /// The library's number for it.
            call: number,
            /// The client's object that was called.
            handle: number,
        }
        /// A cached object has changed: the clients of one connection that have it are told.
        15 Update {
            /// Any number of that connection's: the one of an attachment.
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
        /// What `Revert` said is done: all that follows is of the state it had.
        16 Reverted {}
        /// Some of the service's data is wanted. Answered by `Entries` or `NotLoaded`.
        17 Data {
            /// To be handed back.
            request: number,
            /// The first key.
            from: bytes,
            /// The first key that is not wanted any more.
            to: maybe,
            /// How many entries at most.
            limit: number,
            /// Whether the last come first.
            reverse: flag,
        }
        /// Some of the service's data is to be written, all or nothing. Answered by `Committed` or `NotLoaded`.
        18 Write {
            /// To be handed back.
            request: number,
            /// The version of the service's data that it was made from.
            base: number,
            /// Keys and values, or nothing to remove them: see `entries`.
            entries: bytes,
        }
        /// An attachment is to end: the client's references by it are dead.
        19 End {
            /// Which.
            attachment: number,
        }
        /// The answer to `Freeze`.
        20 Frozen {
            /// As it came.
            request: number,
            /// The host's numbers of the calls that wait for something: 8 bytes each.
            calls: bytes,
            /// The objects that clients have and that can be made again: see `put_object`.
            objects: bytes,
            /// The highest number that an object was given.
            numbers: number,
            /// How many states live in this generation.
            states: number,
            /// Copies of clients' objects: see `put_copy`.
            copies: later,
        }
        /// The answer to `Adopt`.
        21 Adopted {
            /// How many objects could be made again.
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
            /// Why it cannot be read, in UTF-8; nothing, if it can.
            message: maybe,
        }
        /// Stands right before an `Answer` or a `Failed` that tells of nothing but these states: it waits for their changes
        /// only. Without it, one waits for all that was said before it.
        24 Looked {
            /// The call that is answered.
            call: number,
            /// A perspective's name, in UTF-8.
            perspective: maybe,
            /// Whether it tells of the service's own state, too.
            service: flag,
        }
        /// The service takes the streams of this listener.
        25 Listen {
            /// Its name, as in the configuration.
            listener: text,
            /// Whether nobody needs to log in there.
            public: flag,
        }
        /// The library has let go of a stream.
        26 Closed {
            /// Which.
            stream: number,
        }
        /// What the next generation is to go on with: as part of standing still, or from one that is replaced already. The library
        /// lets go of the stream when it is told to `Retire`; after that, with these words.
        27 Carry {
            /// The stream.
            stream: number,
            /// The request of `Freeze` that it belongs to; 0: the library is replaced already.
            replacement: number,
            /// Whatever the library wants to be handed again; empty: it has done nothing with it.
            state: bytes,
        }
        /// Is this right? The one frame of its batch. Answered by `LoggedIn` or `NotLoggedIn`.
        28 Authenticate {
            /// To be handed back.
            request: number,
            /// The stream that it came by, which belongs to the login from then on.
            stream: number,
            /// What proves it: 1 is a password, 2 a token, 3 a public key of which the library says that the client has proven to
            /// have it; 4 is a public key, which is answered by `Told`, and 5 the signature of that; 6 the token of a login that is
            /// remembered, which belongs to no stream; 7 is the certificate that the client has shown by TLS, of which nothing is said. Keys are as OpenSSH writes them, signatures as its wire has them.
            kind: number,
            /// The name; empty where the proof says whose it is.
            name: text,
            /// The proof.
            secret: bytes,
            /// Whose request a proxy passes on: an address; empty: the stream's own.
            source: text,
        }
        /// A login is over: nobody in the library has it any more, or nothing comes by it any more, as the host has said.
        29 LogOut {
            /// Which.
            login: number,
            /// How many answers `LoggedIn` with it the library has had since it said so last: another may be on its way.
            answers: number,
        }
        /// The client is about to speak TLS: the host does, from here on. Answered by `Lent` or `NotLoggedIn`.
        30 StartTls {
            /// To be handed back.
            request: number,
            /// The stream.
            stream: number,
        }
        /// What was said before this is committed? Answered by `Committed` or `NotLoaded`.
        31 Sync {
            /// To be handed back.
            request: number,
        }
        /// The library has made a descriptor of its own of one that a frame has named; if it is a stream's, it serves that.
        32 Taken {
            /// Which.
            stream: number,
            /// The host's descriptor, as the frame has named it.
            descriptor: number,
        }
        /// A way is wanted to what a login has keys for. Answered by `Lent` or `NotLoggedIn`.
        33 Attach {
            /// To be handed back.
            request: number,
            /// Whose.
            login: number,
        }
        /// A login is to outlive its stream. Answered by `Told`, with the token that it goes on by (`Authenticate`, kind 6), or
        /// by `NotLoggedIn`.
        34 Remember {
            /// To be handed back.
            request: number,
            /// Which.
            login: number,
            /// How long it may be unused, in seconds.
            idle: number,
            /// How long it lasts at most, in seconds.
            longest: number,
        }
        /// A login that outlives its stream is over: its token is worth nothing any more. Answered by `Told`, or by
        /// `NotLoggedIn`.
        35 SignOut {
            /// To be handed back.
            request: number,
            /// Which.
            login: number,
        }
        /// What there is to know of the identity that has logged in. Answered by `Told` (an `Account`, in Jelly), or by
        /// `NotLoggedIn`.
        36 Account {
            /// To be handed back.
            request: number,
            /// By which login.
            login: number,
        }
        /// One of the identity's own sessions, or its remembered logins, is to end. Answered by `Told`, or by `NotLoggedIn`.
        37 EndOwn {
            /// To be handed back.
            request: number,
            /// By which login.
            login: number,
            /// Whether it is a remembered login; if not, a session.
            remembered: flag,
            /// Its number.
            number: number,
        }
        /// A user who has logged in changes their own password or keys, and gives their password once more. The only frame of its batch.
        /// Answered by `Told` (what a key is called from now on), or by `NotLoggedIn`.
        38 ChangeOwn {
            /// To be handed back.
            request: number,
            /// By which login.
            login: number,
            /// The stream that it came by.
            stream: number,
            /// Whose request a proxy passes on: an address; empty: the stream's own.
            source: text,
            /// The password.
            proof: bytes,
            /// 1: the password becomes another; 2: one more public key; 3: a public key is taken away, 4: an access token is.
            what: number,
            /// What it is called; empty: what the key says itself.
            label: text,
            /// The new password, or the key as OpenSSH writes it or in PEM.
            value: bytes,
        }
        /// So much is kept for a stream: what has come and was not taken, what was written and has not left. Not said of every byte.
        39 Buffered {
            /// The stream.
            stream: number,
            /// How much, in bytes.
            bytes: number,
        }
        /// The answer to `Yield`: all changes of the perspective were said before.
        40 Yielded {
            /// The perspective's name.
            perspective: text,
        }
        /// The answer to `Regain`: what is in memory of it is as it is saved.
        41 Regained {
            /// The perspective's name.
            perspective: text,
        }
        /// Never said by a library: the host's own word to a connection. A client's object that one generation has was
        /// handed to the next one, too.
        255 Retained {
            /// The client's object.
            handle: number,
        }
    }
}

/// Appends an entry of a service's data: a key, and what it has.
pub fn put_entry(out: &mut Vec<u8>, key: &[u8], value: Option<&[u8]>) {
    put(out, key);
    out.push(u8::from(value.is_some()));
    put(out, value.unwrap_or_default());
}

/// The entries in a frame's list of them, as far as they are ones.
pub fn entries(mut bytes: &[u8]) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
    std::iter::from_fn(move || {
        let key = get(&mut bytes)?;
        let some = take(&mut bytes, 1)? != [0];
        let value = get(&mut bytes)?;
        Some((key, some.then_some(value)))
    })
}

/// Appends an object to a list of those that can be made again: its number, how often it was handed out, and by what name
/// it is known.
pub fn put_object(out: &mut Vec<u8>, object: u64, count: u64, name: &str) {
    out.extend_from_slice(&object.to_le_bytes());
    out.extend_from_slice(&count.to_le_bytes());
    put(out, name.as_bytes());
}

/// The objects in a list of them, as far as they are ones.
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
    /// Whether somebody has it: then it is given to the next generation, too. If not, it is on its way back to the client.
    pub held: bool,
    /// By which attachments it came, as [`numbers`].
    pub by: &'a [u8],
    /// The client's name for its type.
    pub class: &'a str,
    /// Its state, in Jelly. `None`: it stands in the mind that the object came in.
    pub state: Option<&'a [u8]>,
    /// The changes since: methods and arguments, as [`entries`].
    pub changes: &'a [u8],
    /// The client's objects in its state, as [`numbers`]: once for each time.
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

/// The copies in a list of them, as far as they are ones.
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

/// The client's objects that a list of copies hands on, once for each time.
pub fn handed_on(bytes: &[u8]) -> impl Iterator<Item = u64> {
    copies(bytes).flat_map(|copy| copy.held.then_some(copy.handle).into_iter().chain(numbers(copy.references)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_as_written_and_unknown_ones_are_passed_over() {
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
    fn no_truncation_and_no_flipped_byte_is_more_than_an_end() {
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
