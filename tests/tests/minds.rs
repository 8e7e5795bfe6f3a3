//! Services call their clients.

use system_tests::host::TestHost;
use system_tests::python::twisted;

#[test]
fn clients_of_twisted_talk_to_each_other_through_a_service() {
    let host = TestHost::with(&["chat"]);
    twisted("chat.py", &[&host.port()]);
}

#[test]
fn objects_live_until_a_twisted_client_drops_them() {
    let host = TestHost::with(&["my-service"]);
    twisted("references.py", &[&host.port()]);
}
