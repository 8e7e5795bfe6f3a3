use plugin_api::testing::TestHost;

use super::*;

fn standing(answer: &Value) -> (i64, i64, i64) {
    let field = |name| answer.root().get(name).and_then(|value| value.as_int()).unwrap();
    (field("best"), field("tries"), field("rank"))
}

#[test]
fn users_share_the_table_and_have_their_own_tries() {
    let host = TestHost::<Scores>::start().unwrap();
    let (alice, bob) = (host.attach("alice").unwrap(), host.attach("bob").unwrap());
    assert_eq!(standing(&alice.call("submit", (50,)).unwrap()), (50, 1, 1));
    assert_eq!(standing(&bob.call("submit", (70,)).unwrap()), (70, 1, 1));
    assert_eq!(standing(&alice.call("submit", (60,)).unwrap()), (60, 2, 2));
    let top: Vec<(String, u64)> = bob.call("top", ()).unwrap();
    assert_eq!(top, [("bob".to_owned(), 70), ("alice".to_owned(), 60)]);
    assert_eq!(alice.call::<Vec<(String, u64)>>("top", (1,)).unwrap().len(), 1);
}

#[test]
fn the_table_survives_a_restart() {
    let host = TestHost::<Scores>::start().unwrap();
    host.attach("alice").unwrap().call::<Value>("submit", (50,)).unwrap();
    let host = TestHost::<Scores>::start_with(&(), host.stop().unwrap()).unwrap();
    let top: Vec<(String, u64)> = host.attach("bob").unwrap().call("top", ()).unwrap();
    assert_eq!(top, [("alice".to_owned(), 50)]);
}

#[test]
fn a_signed_in_user_submits_a_score_that_everybody_sees() {
    let host = TestHost::<Scores>::start().unwrap();
    host.identity("alice", "correct horse", &["alice"]);
    let ask = |head: &str, cookie: &str, form: &str| {
        let mut browser = host.connect("http").unwrap();
        let length = form.len();
        let kind = "Content-Type: application/x-www-form-urlencoded";
        let close = "Connection: close";
        let text = format!(
            "{head} HTTP/1.1\r\nHost: scores\r\n{close}\r\n{kind}\r\nCookie: {cookie}\r\nContent-Length: {length}\r\n\r\n{form}"
        );
        browser.send(text).unwrap();
        browser.rest().unwrap()
    };
    let page = ask("POST /sign-in", "", "name=alice&password=wrong");
    assert!(page.starts_with("HTTP/1.1 403") && page.contains("wrong name or password"), "{page}");
    let page = ask("POST /sign-in", "", "name=alice&password=correct%20horse");
    let cookie = page.split("set-cookie: ").nth(1).and_then(|rest| rest.split(';').next()).unwrap().to_owned();
    assert!(ask("GET /", &cookie, "").contains("Your score, alice"));
    assert!(ask("POST /submit", &cookie, "score=70").starts_with("HTTP/1.1 303"));
    assert!(ask("POST /submit", "", "score=99").starts_with("HTTP/1.1 303"), "a stranger's counts nothing");
    assert!(ask("GET /", "", "").contains("<td>1</td><td>alice</td><td>70</td>"));
    // The same table as by Perspective Broker, and the same try.
    assert_eq!(standing(&host.attach("alice").unwrap().call("submit", (50,)).unwrap()), (70, 2, 1));
    ask("POST /sign-out", &cookie, "");
    assert!(ask("GET /", &cookie, "").contains("Sign in to submit a score"));
}
