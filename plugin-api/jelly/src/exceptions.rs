//! Python's builtin exceptions and their bases.
//!
//! Source: `builtins` of Python 3.11, and `exceptions` of Python 2.7 for the names that no longer exist.

/// Each exception with its bases, the nearest first, `BaseException` last.
const BUILTINS: &[(&str, &[&str])] = &[
    ("ArithmeticError", &["Exception", "BaseException"]),
    ("AssertionError", &["Exception", "BaseException"]),
    ("AttributeError", &["Exception", "BaseException"]),
    ("BaseException", &[]),
    ("BaseExceptionGroup", &["BaseException"]),
    ("BlockingIOError", &["OSError", "Exception", "BaseException"]),
    ("BrokenPipeError", &["ConnectionError", "OSError", "Exception", "BaseException"]),
    ("BufferError", &["Exception", "BaseException"]),
    ("BytesWarning", &["Warning", "Exception", "BaseException"]),
    ("ChildProcessError", &["OSError", "Exception", "BaseException"]),
    ("ConnectionAbortedError", &["ConnectionError", "OSError", "Exception", "BaseException"]),
    ("ConnectionError", &["OSError", "Exception", "BaseException"]),
    ("ConnectionRefusedError", &["ConnectionError", "OSError", "Exception", "BaseException"]),
    ("ConnectionResetError", &["ConnectionError", "OSError", "Exception", "BaseException"]),
    ("DeprecationWarning", &["Warning", "Exception", "BaseException"]),
    ("EOFError", &["Exception", "BaseException"]),
    ("EncodingWarning", &["Warning", "Exception", "BaseException"]),
    ("EnvironmentError", &["OSError", "Exception", "BaseException"]),
    ("Exception", &["BaseException"]),
    ("ExceptionGroup", &["BaseExceptionGroup", "Exception", "BaseException"]),
    ("FileExistsError", &["OSError", "Exception", "BaseException"]),
    ("FileNotFoundError", &["OSError", "Exception", "BaseException"]),
    ("FloatingPointError", &["ArithmeticError", "Exception", "BaseException"]),
    ("FutureWarning", &["Warning", "Exception", "BaseException"]),
    ("GeneratorExit", &["BaseException"]),
    ("IOError", &["OSError", "Exception", "BaseException"]),
    ("ImportError", &["Exception", "BaseException"]),
    ("ImportWarning", &["Warning", "Exception", "BaseException"]),
    ("IndentationError", &["SyntaxError", "Exception", "BaseException"]),
    ("IndexError", &["LookupError", "Exception", "BaseException"]),
    ("InterruptedError", &["OSError", "Exception", "BaseException"]),
    ("IsADirectoryError", &["OSError", "Exception", "BaseException"]),
    ("KeyError", &["LookupError", "Exception", "BaseException"]),
    ("KeyboardInterrupt", &["BaseException"]),
    ("LookupError", &["Exception", "BaseException"]),
    ("MemoryError", &["Exception", "BaseException"]),
    ("ModuleNotFoundError", &["ImportError", "Exception", "BaseException"]),
    ("NameError", &["Exception", "BaseException"]),
    ("NotADirectoryError", &["OSError", "Exception", "BaseException"]),
    ("NotImplementedError", &["RuntimeError", "Exception", "BaseException"]),
    ("OSError", &["Exception", "BaseException"]),
    ("OverflowError", &["ArithmeticError", "Exception", "BaseException"]),
    ("PendingDeprecationWarning", &["Warning", "Exception", "BaseException"]),
    ("PermissionError", &["OSError", "Exception", "BaseException"]),
    ("ProcessLookupError", &["OSError", "Exception", "BaseException"]),
    ("RecursionError", &["RuntimeError", "Exception", "BaseException"]),
    ("ReferenceError", &["Exception", "BaseException"]),
    ("ResourceWarning", &["Warning", "Exception", "BaseException"]),
    ("RuntimeError", &["Exception", "BaseException"]),
    ("RuntimeWarning", &["Warning", "Exception", "BaseException"]),
    ("StandardError", &["Exception", "BaseException"]),
    ("StopAsyncIteration", &["Exception", "BaseException"]),
    ("StopIteration", &["Exception", "BaseException"]),
    ("SyntaxError", &["Exception", "BaseException"]),
    ("SyntaxWarning", &["Warning", "Exception", "BaseException"]),
    ("SystemError", &["Exception", "BaseException"]),
    ("SystemExit", &["BaseException"]),
    ("TabError", &["IndentationError", "SyntaxError", "Exception", "BaseException"]),
    ("TimeoutError", &["OSError", "Exception", "BaseException"]),
    ("TypeError", &["Exception", "BaseException"]),
    ("UnboundLocalError", &["NameError", "Exception", "BaseException"]),
    ("UnicodeDecodeError", &["UnicodeError", "ValueError", "Exception", "BaseException"]),
    ("UnicodeEncodeError", &["UnicodeError", "ValueError", "Exception", "BaseException"]),
    ("UnicodeError", &["ValueError", "Exception", "BaseException"]),
    ("UnicodeTranslateError", &["UnicodeError", "ValueError", "Exception", "BaseException"]),
    ("UnicodeWarning", &["Warning", "Exception", "BaseException"]),
    ("UserWarning", &["Warning", "Exception", "BaseException"]),
    ("ValueError", &["Exception", "BaseException"]),
    ("Warning", &["Exception", "BaseException"]),
    ("ZeroDivisionError", &["ArithmeticError", "Exception", "BaseException"]),
];

/// Twisted's classes that are sent, each with its bases: those of Twisted, and builtins up to `Exception`.
const TWISTED: &[(&str, &[&str])] = &[
    ("twisted.cred.error.Unauthorized", &["Exception"]),
    ("twisted.cred.error.LoginFailed", &["Exception"]),
    (
        "twisted.cred.error.UnauthorizedLogin",
        &["twisted.cred.error.LoginFailed", "twisted.cred.error.Unauthorized", "Exception"],
    ),
    ("twisted.cred.error.UnhandledCredentials", &["twisted.cred.error.LoginFailed", "Exception"]),
    ("twisted.cred.error.LoginDenied", &["twisted.cred.error.LoginFailed", "Exception"]),
    ("twisted.cred.error.KeyNotFound", &["KeyError", "LookupError", "twisted.cred.error.Unauthorized", "Exception"]),
    ("twisted.cred.error.DuplicateIdentity", &["KeyError", "LookupError", "Exception"]),
    ("twisted.spread.flavors.NoSuchMethod", &["AttributeError", "Exception"]),
    ("twisted.spread.jelly.InsecureJelly", &["Exception"]),
    ("twisted.spread.pb.ProtocolError", &["Exception"]),
    ("twisted.spread.pb.DeadReferenceError", &["twisted.spread.pb.ProtocolError", "Exception"]),
    ("twisted.spread.pb.PBConnectionLost", &["Exception"]),
    ("twisted.spread.pb.RemoteError", &["Exception"]),
    ("twisted.python.failure.DefaultException", &["Exception"]),
    (
        "twisted.internet.error.TimeoutError",
        &["twisted.internet.error.UserError", "twisted.internet.error.ConnectError", "Exception"],
    ),
];

/// The bases of a builtin exception, the nearest first, up to `BaseException`; `None` if there is no such builtin. The name may
/// include the module of either era: `builtins.ValueError`, `exceptions.ValueError`.
///
/// ```
/// use jelly::exceptions::bases;
/// assert_eq!(bases("KeyError"), Some(&["LookupError", "Exception", "BaseException"][..]));
/// assert_eq!(bases("exceptions.KeyError"), bases("KeyError"));
/// assert_eq!(bases("todo.NoSuchTask"), None);
/// ```
#[must_use]
pub fn bases(name: &str) -> Option<&'static [&'static str]> {
    let name = bare(name);
    let at = BUILTINS.binary_search_by(|(known, _)| (*known).cmp(name)).ok()?;
    BUILTINS.get(at).map(|(_, bases)| *bases)
}

/// All of these classes of Twisted's, with their bases.
pub fn all_of_twisted() -> impl Iterator<Item = (&'static str, &'static [&'static str])> {
    TWISTED.iter().copied()
}

/// The bases of one of Twisted's own classes that do not derive from `twisted.spread.pb.Error`; `None` for any other name.
///
/// ```
/// use jelly::exceptions::of_twisted;
/// assert_eq!(of_twisted("twisted.cred.error.Unauthorized"), Some(&["Exception"][..]));
/// assert_eq!(of_twisted("twisted.spread.pb.Error"), None);
/// ```
#[must_use]
pub fn of_twisted(name: &str) -> Option<&'static [&'static str]> {
    TWISTED.iter().find(|(known, _)| *known == name).map(|(_, bases)| *bases)
}

/// A name without the module of the builtins of either era.
///
/// ```
/// assert_eq!(jelly::exceptions::bare("builtins.ValueError"), "ValueError");
/// assert_eq!(jelly::exceptions::bare("todo.NoSuchTask"), "todo.NoSuchTask");
/// ```
#[must_use]
pub fn bare(name: &str) -> &str {
    name.strip_prefix("builtins.").or_else(|| name.strip_prefix("exceptions.")).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_complete() {
        assert!(BUILTINS.is_sorted_by(|one, other| one.0 < other.0));
        for (name, all) in BUILTINS {
            for base in *all {
                assert!(bases(base).is_some(), "{name} derives from {base}, which is not there");
            }
            assert!(*name == "BaseException" || all.last() == Some(&"BaseException"), "{name}");
        }
    }
}
