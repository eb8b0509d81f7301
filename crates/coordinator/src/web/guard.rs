//! What every request for a page passes: who may come, from which site, and what a browser may do with the answer.
//!
//! 1. Visitors show what callers of the API show: "authorization: Bearer TOKEN", or the cookie that `login` has set.
//! 2. What changes something comes from our own pages: a browser says where a form was (Sec-Fetch-Site, Origin).
//! 3. Without tokens, we answer to addresses and to names without a dot alone: a site elsewhere can make a name of its own mean
//!    this machine, and would be taken for one of our pages.

use super::html::Failure;
use super::{App, Shared, login};
use axum::extract::{Request, State};
use axum::http::header::{COOKIE, HOST, HeaderName, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use deepcluster_service::door::{Refusal, bearer};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tracing::warn;

/// The cookie that holds a token.
pub(crate) const TOKEN: &str = "dc_token";

/// Pages for everybody: they tell nothing, or let one in or out.
const OPEN: [&str; 4] = ["/healthz", "/live.js", "/login", "/logout"];

/// Longest time until an answer begins: a page of the atlas decodes some hundred images.
const ANSWER: Duration = Duration::from_secs(60);

/// What a browser may do with our pages: nothing but what they need.
const HEADERS: [(&str, &str); 4] = [
    (
        "content-security-policy",
        "default-src 'none'; style-src 'unsafe-inline'; img-src data: 'self'; script-src 'self'; connect-src 'self'; \
         form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    // With no-referrer, browsers would not say where our own forms come from either.
    ("referrer-policy", "same-origin"),
    ("cache-control", "no-store"),
];

/// Who is at the other end of a connection.
#[derive(Clone, Copy)]
pub(crate) struct Peer(pub(crate) Option<SocketAddr>);

/// The layer around all pages.
pub(crate) async fn guard(State(app): Shared, request: Request, next: Next) -> Response {
    let refused = refusal(&app, &request);
    let mut response = match refused {
        Some(refused) => refused,
        None => match tokio::time::timeout(ANSWER, next.run(request)).await {
            Ok(response) => response,
            Err(_) => {
                let sentence = "This takes too long now. What was begun goes on: ask again in a minute.";
                Failure::new(StatusCode::SERVICE_UNAVAILABLE, sentence).into_response()
            }
        },
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}

/// The answer to a request that may not pass.
fn refusal(app: &App, request: &Request) -> Option<Response> {
    let (path, headers) = (request.uri().path(), request.headers());
    let peer = request.extensions().get::<Peer>().and_then(|peer| peer.0);
    let reads = request.method() == Method::GET || request.method() == Method::HEAD;
    let refuse = |why: &str| warn!(peer = ?peer, path, why, "refused");
    if path != "/healthz" && app.tokens.write.is_none() && !is_addressed_safely(headers) {
        refuse("a name of somebody else");
        let sentence = "Without tokens, this page is only served by its address or by a name without a dot. \
                        Give the coordinator tokens (--write-token-file) to use other names.";
        return Some(Failure::new(StatusCode::FORBIDDEN, sentence).into_response());
    }
    if !reads && !comes_from_us(headers) {
        refuse("a form of another site");
        let sentence = "This was asked by a page of another site, and is refused.";
        return Some(Failure::new(StatusCode::FORBIDDEN, sentence).into_response());
    }
    if OPEN.contains(&path) {
        return None;
    }
    let offered = offered(headers);
    let why = app.tokens.permit(offered.as_deref(), !reads).err()?;
    refuse(&why.to_string());
    Some(match why {
        Refusal::Missing => login::form(StatusCode::UNAUTHORIZED, ""),
        Refusal::Wrong => login::form(StatusCode::UNAUTHORIZED, "That token is not the right one any more."),
        Refusal::ReadsOnly => {
            let sentence = "The token that you signed in with lets you look, and nothing else. \
                            Sign out, and in again with the write token, to change something.";
            Failure::new(StatusCode::FORBIDDEN, sentence).into_response()
        }
    })
}

/// The token that a request shows.
pub(crate) fn offered(headers: &HeaderMap) -> Option<String> {
    bearer(headers).map(str::to_owned).or_else(|| token_of_cookie(headers))
}

/// Whether no other site can have sent this. Programs that are no browsers say nothing of where they come from.
fn comes_from_us(headers: &HeaderMap) -> bool {
    let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    let same_site = site.is_none_or(|site| site == b"same-origin" || site == b"none");
    let same_origin = headers.get(ORIGIN).is_none_or(|origin| {
        let origin: Option<Uri> = origin.to_str().ok().and_then(|origin| origin.parse().ok());
        // Both leave out the port that goes without saying.
        let origin = origin.filter(|origin| origin.scheme().is_some());
        origin.as_ref().and_then(Uri::authority).is_some_and(|origin| host(headers).as_ref() == Some(origin))
    });
    same_site && same_origin
}

/// Whether the name by which we were asked can be nobody else's.
fn is_addressed_safely(headers: &HeaderMap) -> bool {
    if !headers.contains_key(HOST) {
        // Every browser sends one.
        return true;
    }
    host(headers).is_some_and(|authority| {
        let name = authority.host().trim_matches(['[', ']']);
        name.parse::<IpAddr>().is_ok() || !name.contains('.')
    })
}

fn host(headers: &HeaderMap) -> Option<Authority> {
    headers.get(HOST)?.to_str().ok()?.parse().ok()
}

/// The token that the cookie holds.
fn token_of_cookie(headers: &HeaderMap) -> Option<String> {
    let cookies = headers.get_all(COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let mut values =
        cookies.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().strip_prefix(TOKEN)?.strip_prefix('='));
    let hex = values.next()?;
    let bytes: Option<Vec<u8>> =
        hex.as_bytes().chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok()).collect();
    String::from_utf8(bytes?).ok()
}

/// A token as the cookie holds it: tokens may have characters that cookies may not.
pub(crate) fn cookie_of_token(token: &str) -> String {
    let hex: String = token.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("{TOKEN}={hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair =
            |(name, value): &(&'static str, &'static str)| (HeaderName::from_static(name), HeaderValue::from_static(value));
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn only_our_own_forms_and_programs_change_anything() {
        let host = ("host", "gpubox:7080");
        for (more, passes) in [
            (vec![], true),
            (vec![("origin", "http://gpubox:7080")], true),
            (vec![("sec-fetch-site", "same-origin"), ("origin", "http://GPUBOX:7080")], true),
            (vec![("sec-fetch-site", "same-site")], false),
            (vec![("sec-fetch-site", "cross-site")], false),
            (vec![("origin", "http://gpubox:7081")], false),
            (vec![("origin", "http://gpubox.evil.example:7080")], false),
            (vec![("origin", "null")], false),
            (vec![("sec-fetch-site", "same-origin"), ("origin", "http://evil.example")], false),
        ] {
            assert_eq!(comes_from_us(&headers(&[vec![host], more.clone()].concat())), passes, "{more:?}");
        }
    }

    #[test]
    fn names_with_dots_may_be_somebody_elses() {
        for (host, safe) in [
            ("127.0.0.1:7080", true),
            ("[::1]:7080", true),
            ("localhost:7080", true),
            ("coordinator", true),
            ("evil.example:7080", false),
            ("127.0.0.1.evil.example", false),
            ("a b", false),
        ] {
            assert_eq!(is_addressed_safely(&headers(&[("host", host)])), safe, "{host}");
        }
    }

    #[test]
    fn a_cookie_brings_its_token_back() {
        let token = "a;b=\"c\\";
        let line = format!("other=1; {}; more=2", cookie_of_token(token));
        let mut all = HeaderMap::new();
        all.insert(COOKIE, HeaderValue::from_str(&line).unwrap());
        assert_eq!(token_of_cookie(&all).as_deref(), Some(token));
        for broken in ["dc_token=zz", "dc_token=\"", "dc_tokens=61", "dc_token=ff"] {
            assert_eq!(token_of_cookie(&headers(&[("cookie", broken)])), None, "{broken}");
        }
    }
}
