//! Signing in: a browser cannot send a token by itself, so a form takes it and a cookie keeps its badge.

use super::Shared;
use super::guard::{cookie_of_token, name_of_cookie};
use super::html::{Frame, escape};
use axum::Form;
use axum::extract::State;
use axum::extract::rejection::FormRejection;
use axum::http::header::SET_COOKIE;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{Html, IntoResponse, Redirect, Response};
use std::collections::HashMap;
use tracing::warn;

/// GET /login.
pub(crate) async fn page(State(app): Shared) -> Response {
    match app.tokens.write {
        Some(_) => form(StatusCode::OK, ""),
        None => Redirect::to("/").into_response(),
    }
}

/// POST /login.
pub(crate) async fn enter(
    State(app): Shared,
    headers: HeaderMap,
    fields: Result<Form<HashMap<String, String>>, FormRejection>,
) -> Response {
    let Ok(Form(fields)) = fields else { return form(StatusCode::BAD_REQUEST, "No token came.") };
    let token = fields.get("token").map(|token| token.trim()).unwrap_or_default();
    if let Err(why) = app.tokens.permit(Some(token), false) {
        warn!(%why, "a wrong token was entered on the live page");
        return form(StatusCode::UNAUTHORIZED, "That is not the right token.");
    }
    with_cookie(&cookie_of_token(&headers, token), app.is_secure)
}

/// POST /logout.
pub(crate) async fn leave(State(app): Shared, headers: HeaderMap) -> Response {
    with_cookie(&format!("{}=; Max-Age=0", name_of_cookie(&headers)), app.is_secure)
}

/// Back to the first page, with a cookie that no script reads and no other site can make use of.
fn with_cookie(cookie: &str, is_secure: bool) -> Response {
    let cookie = format!("{cookie}; Path=/; HttpOnly; SameSite=Strict{}", if is_secure { "; Secure" } else { "" });
    let mut response = Redirect::to("/").into_response();
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        response.headers_mut().insert(SET_COOKIE, cookie);
    }
    response
}

/// The form, with a sentence on what went wrong.
pub(crate) fn form(status: StatusCode, trouble: &str) -> Response {
    let trouble = match trouble {
        "" => String::new(),
        trouble => format!("<p class=\"trouble\" role=\"alert\" id=\"trouble\">{}</p>", escape(trouble)),
    };
    let body = format!(
        "<h1>Sign in</h1>{trouble}\
         <form method=\"post\" action=\"/login\" class=\"login\">\
         <label for=\"token\">Token of this coordinator</label>\
         <input id=\"token\" name=\"token\" type=\"password\" autocomplete=\"current-password\" required>\
         <button type=\"submit\">Sign in</button></form>\
         <p>The read token lets you look, the write token also lets you pause, resume and cancel runs. \
         They stand in the files that the coordinator was given as --read-token-file and --write-token-file.</p>"
    );
    (status, Html(Frame { title: "Sign in", ..Frame::default() }.around(&body))).into_response()
}
