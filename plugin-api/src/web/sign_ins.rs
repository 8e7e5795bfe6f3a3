//! Signing in with a browser: a cookie, and the login that it stands for.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderValue, header};
use zeroize::Zeroizing;

use super::Visitor;
use crate::doors::{Authorizer, Lasts, Login, Refused, sealed};

/// How many logins are cached. The host is asked for others.
const KEPT: usize = 10_000;
/// The longest token of a cookie that is accepted, in bytes.
const LONGEST: usize = 128;
/// How long a cached login is used at most before the host is asked again.
const AT_HAND: Duration = Duration::from_secs(60);

/// The properties of the cookie for signing in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cookie {
    /// The name, without the prefix that browsers require (`__Host-` or `__Secure-`).
    pub name: String,
    /// The domain whose hosts all receive the cookie. `None`: this host alone, which is safer.
    pub domain: Option<String>,
    /// How long a visitor stays signed in.
    pub lasts: Lasts,
}

impl Cookie {
    /// Its whole name. The prefix tells the browser that it may not be set in the clear and, without a domain, by no other host.
    fn full_name(&self) -> String {
        let before = if self.domain.is_some() { "__Secure-" } else { "__Host-" };
        format!("{before}{}", self.name)
    }

    /// The token in a request's cookies. `None` if there are two: another host of the domain may have set one.
    fn token(&self, headers: &HeaderMap) -> Option<Token> {
        let name = self.full_name();
        // Cookies that others have set may be any bytes at all.
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

/// The token in a cookie.
#[derive(PartialEq, Eq)]
struct Token(Zeroizing<String>);

impl Hash for Token {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.as_str().hash(state);
    }
}

/// A cached login.
struct Known {
    login: Login,
    asked: Instant,
}

/// Separates the connection from its login when this is dropped.
struct Forgets<'v>(&'v Visitor);

impl Drop for Forgets<'_> {
    fn drop(&mut self) {
        if let Some(cell) = sealed::Caller::cell(self.0) {
            cell.forget_login();
        }
    }
}

/// The visitors who have signed in with a browser. All pages of a service share one `SignIns`.
///
/// A visitor who signs in receives a cookie with a new token, which the host remembers ([`Authorizer::remember`]). So visitors
/// stay signed in when the code is replaced and when the host restarts. They are signed out everywhere when what they signed in
/// with is taken away.
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
    /// Begins with an empty cache: no login is known yet.
    #[must_use]
    pub fn new(authorizer: Authorizer, cookie: Cookie) -> Arc<Self> {
        Arc::new(Self { authorizer, cookie, known: Mutex::default() })
    }

    /// Signs a visitor in. Returns the login, and the value for `Set-Cookie`. A cookie that came with the request is no longer
    /// valid after this.
    ///
    /// # Errors
    /// If the password is wrong, if the host does not check it, or if others could listen.
    ///
    /// ```no_run
    /// # use axum::http::{HeaderMap, HeaderValue};
    /// # use plugin_api::Refused;
    /// # use plugin_api::web::{SignIns, Visitor};
    /// # async fn pages(sign_ins: &SignIns, visitor: &Visitor, headers: &HeaderMap) -> Result<HeaderValue, Refused> {
    /// // A request whose cookie shows who sends it.
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
        // However this ends, even if the visitor goes: others may come by the same connection of a proxy.
        let _forgets = Forgets(visitor);
        let login = self.authorizer.password(visitor, name, password).await?;
        // An older cookie must not be valid after signing in again. First: if it cannot be signed out, no token is left that
        // nobody has.
        self.sign_out(visitor, headers).await?;
        let (login, token) = self.authorizer.remember(visitor, login, self.cookie.lasts).await?;
        let set = self.cookie.set(&token, "");
        self.keep(Token(token), &login);
        Ok((login, set))
    }

    /// The login of the visitor who is asking, if they have signed in. Also `None` if the host cannot look it up at the moment.
    ///
    /// The visitor sees a page (`GET`, `HEAD`) only while the login lasts. If the login is revoked while the page is made, the
    /// response is a 401; if it is revoked while the page is sent, the response ends there.
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
            // A login that was revoked meanwhile is nobody's.
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

    /// The cookies of a request without this one, for passing the request on to somebody whom this cookie does not concern.
    /// `None`: there are no others.
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

    /// Signs the visitor out who is asking. Returns the value for `Set-Cookie`.
    ///
    /// # Errors
    /// If the host cannot record it at the moment. The visitor is still signed in then.
    pub async fn sign_out(&self, visitor: &Visitor, headers: &HeaderMap) -> Result<HeaderValue, Refused> {
        if let Some(token) = self.cookie.token(headers) {
            match self.authorizer.resume(visitor, token.0.as_str()).await {
                Ok(login) => match login.forget().await {
                    Err(refused) if refused.wait() > 0 => return Err(refused),
                    // If another request of the same browser has ended the login meanwhile, that is as good.
                    Ok(()) | Err(_) => {}
                },
                Err(refused) if refused.wait() > 0 => return Err(refused),
                // The token is nobody's already.
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
            // Removes those that nobody has asked for lately, or all if the rest are still too many.
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
