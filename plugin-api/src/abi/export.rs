//! The library's side of the wall.

use std::fs::File;
use std::os::fd::BorrowedFd;

use abi_stable::library::{CheckTypeLayout, LibHeader};
use abi_stable::marker_type::ErasedPrefix;
use abi_stable::prefix_type::{PrefixRefTrait, PrefixTypeTrait};
use abi_stable::std_types::ROk;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::arena::Arena;
use super::types::{Built, HostRef, Module, ModuleRef, Span};
use crate::runtime::{Sleep, Wall, run};
use crate::service::Service;

pub use abi_stable::library::LibHeader as Header;
/// What the exported symbol's constructor returns.
pub type ModuleResult = abi_stable::library::RootModuleResult;

/// The header behind the symbol that [`crate::export!`] exports.
#[must_use]
pub const fn header(constructor: extern "C" fn() -> ModuleResult) -> LibHeader {
    // SAFETY: `from_constructor` wants the constructor's answer to be a `ModuleRef` in erased form. The only
    // constructors that reach this function are those which `export!` writes, and they answer with `module::<S>()`
    // below, which erases a `ModuleRef`.
    unsafe { LibHeader::from_constructor::<ModuleRef>(constructor, CheckTypeLayout::Yes) }
}

/// The module of a service, in erased form. `UNWINDS`: whether the library's panics unwind.
#[must_use]
pub fn module<S: Service, M: Memory, const UNWINDS: bool>() -> ModuleResult {
    // SAFETY: `cast` changes the type behind the reference to the erased one, which has no fields to read; the loader
    // casts it back to `ModuleRef` before it reads any.
    ROk(unsafe { table::<S, M, UNWINDS>().to_prefix_ref().cast::<ErasedPrefix>() })
}

/// The module of a service that is linked into the host's own program: it shares the program's logging and panic hook.
#[must_use]
pub fn linked<S: Service>() -> ModuleRef {
    let built = built::<{ cfg!(panic = "unwind") }>;
    Module { built, run: run_linked::<S>, hand_over: hand_over::<Foreigners> }.leak_into_prefix()
}

fn table<S: Service, M: Memory, const UNWINDS: bool>() -> ModuleRef {
    Module { built: built::<UNWINDS>, run: run_library::<S>, hand_over: hand_over::<M> }.leak_into_prefix()
}

/// A library's allocator, as [`crate::export!`] has set it.
pub trait Memory: 'static {
    /// The library's allocator, if it is an arena.
    fn arena() -> Option<&'static Arena>;
}

/// An allocator of the author's own, of which nothing is known.
#[derive(Debug)]
pub struct Foreigners;

impl Memory for Foreigners {
    fn arena() -> Option<&'static Arena> {
        None
    }
}

extern "C" fn hand_over<M: Memory>(place: usize) -> bool {
    let Some(arena) = M::arena() else { return false };
    // SAFETY: only the host calls this, by the module's table, with the address of a pointer of its own that stays
    // where it is until the library is closed (`types::Module::hand_over`).
    unsafe { arena.hand_over(place as *mut *mut super::arena::Header) };
    true
}

extern "C" fn built<const UNWINDS: bool>() -> Built {
    Built { unwinds: UNWINDS }
}

extern "C" fn run_library<S: Service>(host: HostRef, gate: usize) {
    contained(host, gate, || {
        crate::logging::install(Box::new(move |level, target, text| {
            (host.log())(gate, level, Span::new(target.as_bytes()), Span::new(text.as_bytes()));
        }));
        run::<S>(Box::new(Foreign { host, gate }));
    });
}

extern "C" fn run_linked<S: Service>(host: HostRef, gate: usize) {
    contained(host, gate, || run::<S>(Box::new(Foreign { host, gate })));
}

/// A panic must not cross the wall. A panic that `run` does not catch ends the service, not the host.
fn contained(host: HostRef, gate: usize, body: impl FnOnce()) {
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).is_err() {
        let text = "the service's main loop panicked; the service has ended";
        (host.log())(gate, 1, Span::new(b"plugin_api"), Span::new(text.as_bytes()));
        let mut frame = Vec::new();
        super::frame::ToHost::Stopped {}.write(&mut frame);
        (host.push())(gate, Span::new(&frame));
    }
}

/// The host, as the library sees it.
struct Foreign {
    host: HostRef,
    gate: usize,
}

impl Wall for Foreign {
    fn pop(&self, into: &mut Vec<u8>) {
        let frames = (self.host.pop())(self.gate);
        // SAFETY: the host promises that the span stays valid until the next pop. Only the main thread pops, and it
        // copies the bytes here, before it can pop again.
        into.extend_from_slice(unsafe { frames.bytes() });
    }

    fn arm(&self) -> bool {
        (self.host.arm())(self.gate)
    }

    fn push(&self, frames: &[u8]) {
        (self.host.push())(self.gate, Span::new(frames));
    }

    fn wait(&self) {
        (self.host.wait())(self.gate);
    }

    fn sleep(&self) -> Box<dyn Sleep> {
        let raw = (self.host.descriptor())(self.gate);
        // SAFETY: the host keeps the gate's descriptor open until `run` has returned; it is only duplicated here.
        let borrowed = unsafe { BorrowedFd::borrow_raw(raw) };
        let ready = borrowed.try_clone_to_owned().ok().and_then(|own| {
            // SAFETY: what is registered must stay the same open descriptor while it is: the `File` owns its duplicate,
            // the `AsyncFd` owns the `File`, and neither lends it out mutably.
            unsafe { AsyncFd::register_with_interest(File::from(own), Interest::READABLE) }.ok()
        });
        Box::new(Eventfd(ready))
    }
}

/// Sleeps until the gate's eventfd is readable.
struct Eventfd(Option<AsyncFd<File>>);

impl Sleep for Eventfd {
    fn sleep(&self) -> std::pin::Pin<Box<dyn Future<Output = ()> + '_>> {
        Box::pin(async {
            let Some(ready) = &self.0 else {
                // No descriptor is left to duplicate it: poll instead.
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                return;
            };
            if let Ok(mut guard) = ready.readable().await {
                // The count is never read: tokio waits for edges, so each write wakes it once, regardless of the count.
                guard.clear_ready();
            }
        })
    }
}
