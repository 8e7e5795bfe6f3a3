//! The two function tables. Fields are only ever appended.

use abi_stable::StableAbi;
use abi_stable::library::RootModule;
use abi_stable::package_version_strings;
use abi_stable::sabi_types::VersionStrings;

/// What a library gives the host.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = ModuleRef)))]
#[sabi(missing_field(panic))]
pub struct Module {
    /// How the library was built: see [`Built`].
    pub built: extern "C" fn() -> Built,
    /// Runs the service on the calling thread, which the host made for it, until the host says stop. `gate` is passed in every
    /// call of the host's functions. Never unwinds.
    pub run: extern "C" fn(host: HostRef, gate: usize),
    /// Keeps the head of the chain of all memory in use at `place` from now on: the address of a pointer in the host's memory,
    /// which stays valid until the library is closed. See [`super::arena`]. Returns false if the library has an allocator of its
    /// own; then the memory that it leaves is not freed.
    #[sabi(last_prefix_field)]
    pub hand_over: extern "C" fn(place: usize) -> bool,
}

/// How a library was built, as far as it matters to the host.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct Built {
    /// Whether a panic unwinds. A library whose panics abort would end the host.
    pub unwinds: bool,
}

/// What the host gives a library. Every function may be called from any thread of the library, never blocks for long, and never
/// unwinds. Bytes passed to a function are copied before it returns.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = HostRef)))]
#[sabi(missing_field(panic))]
pub struct Host {
    /// The descriptor (an eventfd) that becomes readable when there is something to pop after [`Host::arm`].
    pub descriptor: extern "C" fn(gate: usize) -> i32,
    /// Takes all frames that wait in the gate. They stay valid until the next pop; only the library's main thread pops.
    pub pop: extern "C" fn(gate: usize) -> Span,
    /// Announces that the main thread will sleep on the descriptor. Returns false if frames have arrived: do not sleep.
    pub arm: extern "C" fn(gate: usize) -> bool,
    /// Passes whole frames to the host.
    pub push: extern "C" fn(gate: usize, frames: Span),
    /// Passes a line for the log: level 1 (error) to 5 (trace), target, text in UTF-8.
    pub log: extern "C" fn(gate: usize, level: u8, target: Span, text: Span),
    /// Waits until there is something to pop, or for a second. This is the only function that blocks: for a main thread that is
    /// frozen between two generations.
    #[sabi(last_prefix_field)]
    pub wait: extern "C" fn(gate: usize),
}

/// Borrowed bytes.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct Span {
    /// Where they start; any address if there are none.
    pub start: *const u8,
    /// Their number.
    pub length: usize,
}

impl Span {
    /// Borrows bytes for the length of one call.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        Self { start: bytes.as_ptr(), length: bytes.len() }
    }

    /// The bytes.
    ///
    /// # Safety
    /// They must be valid for reads for the lifetime that the caller chooses.
    #[must_use]
    pub unsafe fn bytes<'a>(self) -> &'a [u8] {
        if self.length == 0 {
            return &[];
        }
        // SAFETY: the caller promises that `length` bytes at `start` are readable for `'a`; an empty span, whose
        // pointer may be anything, is handled above.
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }
}

impl RootModule for ModuleRef {
    abi_stable::declare_root_module_statics! {ModuleRef}
    const BASE_NAME: &'static str = "credhost_service";
    const NAME: &'static str = "credhost_service";
    const VERSION_STRINGS: VersionStrings = package_version_strings!();
}

/// The name of the one symbol that a library exports.
pub const SYMBOL: &str = "credhost_service";
