//! Who has signed in by a browser: a cookie, and the login that it stands for.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderValue, header};
use zeroize::Zeroizing;

use super::Visitor;
use crate::doors::{Authorizer, Lasts, Login, Refused, sealed};

/// How many logins are kept at hand; others are asked of the host.
const KEPT: usize = 10_000;
/// The longest cookie that is looked at.
const LONGEST: usize = 128;
/// How long one is taken from here before the host is asked again, at most.
const AT_HAND: Duration = Duration::from_secs(60);

/// What a cookie is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cookie {
    /// Its name, without what browsers ask for before it.
    pub name: String,
    /// The domain whose hosts all get it; none: this host alone, which is safer.
    pub domain: Option<String>,
    /// How long who has signed in stays so.
    pub lasts: Lasts,
}

impl Cookie {
    /// Its whole name: by that a browser knows that no other host, and nothing in the clear, may set it.
    fn full_name(&self) -> String {
        let before = if self.domain.is_some() { "__Secure-" } else { "__Host-" };
        format!("{before}{}", self.name)
    }

    /// The token in a request's cookies. Two of them are none: another host of the domain may have set one.
    fn token(&self, headers: &HeaderMap) -> Option<Token> {
        let name = self.full_name();
        // What others have set may be any bytes at all.
        let all =
            headers.get_all(header::COOKIE).into_iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
        let own = all.filter_map(|pair| pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"="));
        let mut own = own.map(|token| std::str::from_utf8(token).unwrap_or_default());
        let token = own.next().filter(|token| !token.is_empty() && token.len() <= LONGEST)?;
        own.next().is_none().then(|| Token(Zeroizing::new(token.to_owned())))
    }

    /// A request's other cookies.
    fn others(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let name = self.full_name();
        let own =
            |pair: &&[u8]| pair.split(|byte| *byte == b'=').next().is_some_and(|of| of.trim_ascii() == name.as_bytes());
        let all = headers.get_all(header::COOKIE).into_iter();
        let all = all.flat_map(|value| value.as_bytes().split(|byte| *byte == b';')).map(<[u8]>::trim_ascii);
        let others: Vec<&[u8]> = all.filter(|pair| !pair.is_empty() && !own(pair)).collect();
        HeaderValue::from_bytes(&others.join(&b"; "[..])).ok().filter(|others| !others.is_empty())
    }

    fn set(&self, token: &str, more: &str) -> HeaderValue {
        let domain = self.domain.as_ref().map(|domain| format!("; Domain={domain}")).unwrap_or_default();
        let name = self.full_name();
        let text = Zeroizing::new(format!("{name}={token}; Path=/{domain}; Secure; HttpOnly; SameSite=Lax{more}"));
        let mut value = HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""));
        value.set_sensitive(true);
        value
    }
}

/// What a cookie says.
#[derive(PartialEq, Eq)]
struct Token(Zeroizing<String>);

impl Hash for Token {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.as_str().hash(state);
    }
}

/// A login that is at hand.
struct Known {
    login: Login,
    asked: Instant,
}

/// The connection belongs to nobody, once this is dropped.
struct Forgets<'v>(&'v Visitor);

impl Drop for Forgets<'_> {
    fn drop(&mut self) {
        if let Some(cell) = sealed::Caller::cell(self.0) {
            cell.forget_login();
        }
    }
}

/// Who has signed in by a browser. Shared by all pages of a service.
///
/// Whoever signs in gets a cookie with a new token, which the host remembers ([`Authorizer::remember`]): so they stay signed in
/// while code is replaced and when the host begins again, and are signed out everywhere when what they signed in with is taken away.
pub struct SignIns {
    authorizer: Authorizer,
    cookie: Cookie,
    known: Mutex<HashMap<Token, Known>>,
}

impl std::fmt::Debug for SignIns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SignIns").field("cookie", &self.cookie).finish_non_exhaustive()
    }
}

impl SignIns {
    /// Nobody is known yet.
    #[must_use]
    pub fn new(authorizer: Authorizer, cookie: Cookie) -> Arc<Self> {
        Arc::new(Self { authorizer, cookie, known: Mutex::default() })
    }

    /// Signs somebody in: the login, and what `Set-Cookie` is to say. Whatever cookie came with the request is worth nothing from
    /// then on.
    ///
    /// # Errors
    /// When the password is wrong, or is not looked at; when others could listen.
    ///
    /// ```no_run
    /// # use axum::http::{HeaderMap, HeaderValue};
    /// # use plugin_api::Refused;
    /// # use plugin_api::web::{SignIns, Visitor};
    /// # async fn pages(sign_ins: &SignIns, visitor: &Visitor, headers: &HeaderMap) -> Result<HeaderValue, Refused> {
    /// // A request that shows who it is by its cookie.
    /// if let Some(login) = sign_ins.login(visitor, headers).await {
    ///     assert!(!login.identity().is_empty());
    ///     // For `Set-Cookie`.
    ///     return sign_ins.sign_out(visitor, headers).await;
    /// }
    /// let (_login, set_cookie) = sign_ins.sign_in(visitor, headers, "alice", "correct horse").await?;
    /// # Ok(set_cookie) }
    /// ```
    pub async fn sign_in(
        &self,
        visitor: &Visitor,
        headers: &HeaderMap,
        name: &str,
        password: &str,
    ) -> Result<(Login, HeaderValue), Refused> {
        if !visitor.is_secure() {
            return Err(Refused::new("passwords are not taken in the clear: use https", 0));
        }
        // However this ends, also by the visitor's going: others may come by the same connection of a proxy's.
        let _forgets = Forgets(visitor);
        let login = self.authorizer.password(visitor, name, password).await?;
        let (login, token) = self.authorizer.remember(visitor, login, self.cookie.lasts).await?;
        // Who signs in again is not to be found by an older cookie.
        self.sign_out(visitor, headers).await?;
        let set = self.cookie.set(&token, "");
        self.keep(Token(token), &login);
        Ok((login, set))
    }

    /// Who is asking, if they have signed in.
    ///
    /// What they see by a page (`GET`, `HEAD`) is theirs as long as the login is: when it is taken away while the page is made, or
    /// while it leaves, the answer is a 401, or ends where it is.
    pub async fn login(&self, visitor: &Visitor, headers: &HeaderMap) -> Option<Login> {
        let login = self.found(visitor, headers).await?;
        visitor.sees_as(&login);
        Some(login)
    }

    async fn found(&self, visitor: &Visitor, headers: &HeaderMap) -> Option<Login> {
        let token = self.cookie.token(headers)?;
        if let Some(login) = self.at_hand(&token) {
            return Some(login);
        }
        let resumed = self.authorizer.resume(visitor, token.0.as_str()).await;
        match resumed {
            // What was taken away while it was asked for is nobody's.
            Ok(login) if !login.is_ended() => {
                self.keep(token, &login);
                Some(login)
            }
            Ok(_) | Err(_) => {
                self.forget(&token);
                None
            }
        }
    }

    /// The cookies of a request without this one: for whoever the request is passed on to, whom it does not concern. `None`: there are
    /// no others.
    ///
    /// ```no_run
    /// # use axum::http::{HeaderMap, header};
    /// # use plugin_api::web::SignIns;
    /// # fn passed_on(sign_ins: &SignIns, headers: &mut HeaderMap) {
    /// match sign_ins.other_cookies(headers) {
    ///     Some(others) => drop(headers.insert(header::COOKIE, others)),
    ///     None => drop(headers.remove(header::COOKIE)),
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn other_cookies(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        self.cookie.others(headers)
    }

    /// Signs out who is asking; what `Set-Cookie` is to say.
    ///
    /// # Errors
    /// When the host cannot write it down just now: they are signed in still.
    pub async fn sign_out(&self, visitor: &Visitor, headers: &HeaderMap) -> Result<HeaderValue, Refused> {
        if let Some(token) = self.cookie.token(headers) {
            match self.authorizer.resume(visitor, token.0.as_str()).await {
                Ok(login) => match login.forget().await {
                    Err(refused) if refused.wait() > 0 => return Err(refused),
                    // One that has ended meanwhile, by another request of the same browser's, is as good.
                    Ok(()) | Err(_) => {}
                },
                Err(refused) if refused.wait() > 0 => return Err(refused),
                // It is nobody's already.
                Err(_) => {}
            }
            self.forget(&token);
        }
        Ok(self.cookie.set("", "; Max-Age=0"))
    }

    fn at_hand(&self, token: &Token) -> Option<Login> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let at_hand = (self.cookie.lasts.idle / 10).min(AT_HAND);
        let fresh = |known: &&Known| !known.login.is_ended() && known.asked.elapsed() < at_hand;
        known.get(token).filter(fresh).map(|known| known.login.clone())
    }

    fn keep(&self, token: Token, login: &Login) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KEPT {
            // Those that nobody has asked for lately; all, if these are too many.
            known.retain(|_, known| !known.login.is_ended() && known.asked.elapsed() < AT_HAND);
            if known.len() >= KEPT {
                known.clear();
            }
        }
        known.insert(token, Known { login: login.clone(), asked: Instant::now() });
    }

    fn forget(&self, token: &Token) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = known.remove(token);
        drop(known);
        drop(gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cookie(domain: Option<&str>) -> Cookie {
        let hour = Duration::from_secs(3600);
        let lasts = Lasts { idle: hour, longest: hour };
        Cookie { name: "credhost".to_owned(), domain: domain.map(str::to_owned), lasts }
    }

    #[test]
    fn a_token_is_read_from_the_one_cookie_of_its_name() {
        let long = format!("__Host-credhost={}", "x".repeat(LONGEST + 1));
        let cases: [(&[&str], Option<&str>); 11] = [
            (&["a=\u{e9}; __Host-credhost=abc"], Some("abc")),
            (&["__Host-credhostile=abc; __Host-credhost =abc"], None),
            (&["__Host-credhost=abc"], Some("abc")),
            (&["a=1; __Host-credhost=abc; b=2"], Some("abc")),
            (&["a=1", "__Host-credhost=abc"], Some("abc")),
            (&["credhost=abc"], None),
            (&["__Secure-credhost=abc"], None),
            (&["__Host-credhost="], None),
            (&["__Host-credhost=abc; __Host-credhost=def"], None),
            (&["__Host-credhost=abc", "__Host-credhost=abc"], None),
            (&[&long], None),
        ];
        for (said, wanted) in cases {
            let headers: HeaderMap =
                said.iter().map(|value| (header::COOKIE, HeaderValue::from_bytes(value.as_bytes()).unwrap())).collect();
            let token = cookie(None).token(&headers);
            assert_eq!(token.as_ref().map(|token| token.0.as_str()), wanted, "{said:?}");
        }
    }

    #[test]
    fn a_cookie_is_secure_and_for_one_host_or_one_domain() {
        let set = |domain: Option<&str>| cookie(domain).set("abc", "").to_str().unwrap().to_owned();
        assert_eq!(set(None), "__Host-credhost=abc; Path=/; Secure; HttpOnly; SameSite=Lax");
        assert_eq!(
            set(Some("example.org")),
            "__Secure-credhost=abc; Path=/; Domain=example.org; Secure; HttpOnly; SameSite=Lax"
        );
    }
}
