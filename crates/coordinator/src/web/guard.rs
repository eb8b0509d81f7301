//! What every request for a page passes: who may come, from which site, and what a browser may do with the answer.
//!
//! 1. Visitors show what callers of the API show, "authorization: Bearer TOKEN", or the cookie that `login` has set. Browsers send
//!    it to all ports of a host, so it holds a badge: what only the token can be made into, and what opens nothing but pages.
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
use blake3::Hash;
use deepcluster_service::door::{Refusal, Tokens, bearer};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tracing::warn;

/// Beginning of the name of the cookie that holds a badge.
const BADGE: &str = "dc_badge";

/// What badges are made for.
const PURPOSE: &str = "deepcluster 2026 badge of the live page v1";

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
    let offered = offered(&app.tokens, headers);
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

/// The token that a request shows, or whose badge it shows; an empty one, which is never right, for a badge of none of ours.
pub(crate) fn offered(tokens: &Tokens, headers: &HeaderMap) -> Option<String> {
    if let Some(token) = bearer(headers) {
        return Some(token.to_owned());
    }
    let shown = Hash::from_hex(badge_of_cookie(headers)?).ok();
    let mut ours = [&tokens.write, &tokens.read].into_iter().flatten().filter_map(|file| file.token().ok());
    // The equality of hashes takes constant time.
    let token = ours.find(|token| shown.is_some_and(|shown| shown == badge(token)));
    Some(token.unwrap_or_default())
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

/// What the cookie holds.
fn badge_of_cookie(headers: &HeaderMap) -> Option<&str> {
    let name = name_of_cookie(headers);
    let cookies = headers.get_all(COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(other, _)| *other == name).map(|(_, value)| value)
}

/// The cookie's name: that of another coordinator at another port of the same host must be another. It is the port as the browser
/// knows it, which may be one of a tunnel.
pub(crate) fn name_of_cookie(headers: &HeaderMap) -> String {
    match host(headers).and_then(|host| host.port_u16()) {
        Some(port) => format!("{BADGE}_{port}"),
        None => BADGE.to_owned(),
    }
}

/// The cookie for who has shown this token.
pub(crate) fn cookie_of_token(headers: &HeaderMap, token: &str) -> String {
    format!("{}={}", name_of_cookie(headers), badge(token).to_hex())
}

/// The badge of a token.
fn badge(token: &str) -> Hash {
    blake3::derive_key(PURPOSE, token.as_bytes()).into()
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
    fn a_cookie_tells_nothing_of_its_token_and_is_of_one_port() {
        let of_port = |port: u16, cookie: &str| {
            let mut all = HeaderMap::new();
            all.insert(HOST, HeaderValue::from_str(&format!("gpubox:{port}")).unwrap());
            all.insert(COOKIE, HeaderValue::from_str(cookie).unwrap());
            all
        };
        let (token, other) = ("a;b=\"c\\", "another");
        let [first, second] = [(7080, token), (7081, other)].map(|(port, token)| cookie_of_token(&of_port(port, "x=1"), token));
        assert!(first.starts_with("dc_badge_7080=") && second.starts_with("dc_badge_7081="), "{first} {second}");
        // A browser sends both to both.
        let line = format!("x=1; {first}; {second}");
        for (port, token) in [(7080, token), (7081, other)] {
            let headers = of_port(port, &line);
            assert_eq!(badge_of_cookie(&headers), Some(badge(token).to_hex().as_str()));
        }
        assert_eq!(badge_of_cookie(&of_port(7082, &line)), None);
        let hex: String = token.bytes().map(|byte| format!("{byte:02x}")).collect();
        assert!(!first.contains(&hex) && !first.contains(blake3::hash(token.as_bytes()).to_hex().as_str()), "{first}");
        assert_eq!(name_of_cookie(&headers(&[("host", "gpubox")])), "dc_badge");
    }
}
