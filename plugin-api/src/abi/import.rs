//! The host's side of the wall: is this library compatible?

use std::cell::UnsafeCell;

use abi_stable::StableAbi;
use abi_stable::abi_stability::abi_checking::{CheckingGlobals, check_layout_compatibility_with_globals};
use abi_stable::library::{AbiHeaderRef, RootModule};
use abi_stable::prefix_type::PrefixTypeTrait;
use abi_stable::type_layout::TypeLayout;

use super::arena::{self, Header};
use super::types::{Built, Host, HostRef, ModuleRef};

pub use super::types::Span;

/// Why a library is incompatible, in one sentence. What abi_stable reports at length goes to the debug log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incompatible {
    /// One sentence, for the operator.
    pub message: String,
    /// The full report.
    pub details: String,
}

/// A library's module that has been checked.
#[derive(Clone, Copy)]
pub struct Library {
    module: ModuleRef,
}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Library")
    }
}

impl Library {
    /// Checks the library behind its exported symbol. This runs the library's code: only on a thread made for it.
    ///
    /// # Safety
    /// `symbol` must be the value of the static [`super::types::SYMBOL`] in a library that stays open for as long as
    /// the answer, or anything made of it, is used.
    ///
    /// # Errors
    /// If it was built against another `plugin-api`, another `abi_stable`, or so that its panics abort.
    pub unsafe fn check(symbol: AbiHeaderRef) -> Result<Self, Incompatible> {
        let wrong = |message: &str, details: String| Incompatible { message: message.to_owned(), details };
        let header = symbol.upgrade().map_err(|error| {
            wrong(
                "it was built with another abi_stable than this host's; rebuild it with the host's plugin-api",
                error.to_string(),
            )
        })?;
        let Some(theirs) = header.layout() else {
            return Err(wrong(
                "it does not say how its types are laid out; rebuild it with plugin-api's export!",
                String::new(),
            ));
        };
        fits(<ModuleRef as StableAbi>::LAYOUT, theirs).map_err(|details| {
            wrong("it was built against a plugin-api that does not fit this host's; rebuild it", details)
        })?;
        // SAFETY: the layout was found compatible just now, in one direction or the other; fields that the older side
        // lacks are behind accessors of the prefix type.
        let module = unsafe { header.init_root_module_with_unchecked_layout::<ModuleRef>() }.map_err(|error| {
            wrong(
                &format!(
                    "its plugin-api {} does not fit this host's {}; rebuild it",
                    header.version_strings(),
                    ModuleRef::VERSION_STRINGS
                ),
                error.to_string(),
            )
        })?;
        Self::of(module)
    }

    /// A service that is linked into this program.
    ///
    /// # Errors
    /// If the program is built so that panics abort.
    pub fn of(module: ModuleRef) -> Result<Self, Incompatible> {
        let Built { unwinds } = (module.built())();
        if unwinds {
            return Ok(Self { module });
        }
        Err(Incompatible {
            message: "it was built with panic = \"abort\": its first panic would end the host; rebuild it with panic = \"unwind\""
                .to_owned(),
            details: String::new(),
        })
    }

    /// Keeps the head of the chain of the library's memory in `place` from now on. Returns false if the library has an allocator
    /// of its own. `place` must not move or be dropped before the library is closed.
    #[must_use]
    pub fn hand_over(self, place: &Place) -> bool {
        (self.module.hand_over())(place.0.get() as usize)
    }

    /// Runs the service on this thread until the host tells it to stop.
    pub fn run(self, host: HostRef, gate: usize) {
        (self.module.run())(host, gate);
    }
}

/// Checks whether a module of their layout can be used as one of ours. Returns the full reason if not.
fn fits(ours: &'static TypeLayout, theirs: &'static TypeLayout) -> Result<(), String> {
    // Each check has its own globals: the shared ones point into libraries that may be gone. The check is one-way; a library
    // built against an older plugin-api passes it in the other direction.
    match check_layout_compatibility_with_globals(ours, theirs, &CheckingGlobals::new()) {
        Err(_) if check_layout_compatibility_with_globals(theirs, ours, &CheckingGlobals::new()).is_ok() => Ok(()),
        Err(newer) => Err(newer.to_string()),
        Ok(()) => Ok(()),
    }
}

/// Keeps the head of the chain of a library's memory.
#[derive(Debug)]
pub struct Place(Box<UnsafeCell<*mut Header>>);

// SAFETY: the host touches what is in it once the library, whose lock orders all else, is closed.
unsafe impl Send for Place {}

impl Place {
    /// An empty place.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it is made for one library")]
    pub fn new() -> Self {
        Self(Box::new(UnsafeCell::new(std::ptr::null_mut())))
    }

    /// Frees what the library has left. Returns how many bytes that was.
    ///
    /// # Safety
    /// The library that the place was handed to must be closed and unmapped, and nothing of its memory in use.
    #[must_use]
    pub unsafe fn free(self) -> usize {
        // SAFETY: the library is closed, says the caller: nobody else touches the place or the chain.
        unsafe { arena::free(*self.0.get()) }
    }
}

/// Makes the host's function table. Call it once: the table is leaked.
#[must_use]
pub fn host(table: Host) -> HostRef {
    table.leak_into_prefix()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The module as another release of this crate would have it.
    macro_rules! release {
        ($module:ident { $($field:tt)* }) => {
            #[allow(dead_code, unreachable_pub, missing_docs)]
            mod $module {
                use abi_stable::StableAbi;

                #[repr(C)]
                #[derive(StableAbi)]
                #[sabi(kind(Prefix(prefix_ref = ModuleRef)))]
                #[sabi(missing_field(panic))]
                pub struct Module {
                    $($field)*
                }
            }
        };
    }

    release!(first {
        pub built: extern "C" fn() -> u8,
        #[sabi(last_prefix_field)]
        pub run: extern "C" fn(gate: usize),
    });
    release!(appended {
        pub built: extern "C" fn() -> u8,
        #[sabi(last_prefix_field)]
        pub run: extern "C" fn(gate: usize),
        pub more: extern "C" fn() -> u64,
    });
    release!(changed {
        pub built: extern "C" fn() -> u8,
        #[sabi(last_prefix_field)]
        pub run: extern "C" fn(gate: u32),
    });
    release!(shortened {
        #[sabi(last_prefix_field)]
        pub built: extern "C" fn() -> u8,
    });

    #[test]
    fn appended_fields_are_compatible_and_changed_ones_are_not() {
        let first = <first::ModuleRef as StableAbi>::LAYOUT;
        let appended = <appended::ModuleRef as StableAbi>::LAYOUT;
        assert_eq!(fits(first, first), Ok(()));
        assert_eq!(fits(first, appended), Ok(()), "a newer library in an older host");
        assert_eq!(fits(appended, first), Ok(()), "an older library in a newer host");
        for other in [<changed::ModuleRef as StableAbi>::LAYOUT, <shortened::ModuleRef as StableAbi>::LAYOUT] {
            assert!(fits(first, other).is_err());
            assert!(fits(other, appended).is_err());
        }
    }
}
