//! What all pages have in common: the frame around them, errors, and how numbers and times are written.

use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use deepcluster_report::STYLE;
pub(crate) use deepcluster_report::escape;
use tonic::{Code, Status};

/// A picture for the browser's tab, so that it asks for none.
const ICON: &str = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'%3E%3Ccircle cx='2.5' cy='3' \
                    r='2' fill='%232563eb'/%3E%3Ccircle cx='5.8' cy='5.4' r='1.7' fill='%23d97706'/%3E%3C/svg%3E";

/// What is around the body of a page.
#[derive(Default)]
pub(crate) struct Frame<'a> {
    /// For the browser's tab.
    pub(crate) title: &'a str,
    /// Where changes are told of, and where the part of the page comes from that they change; empty for a page that stays.
    pub(crate) live: Option<Live>,
    /// Whether there is a way to sign out.
    pub(crate) signed_in: bool,
}

/// Addresses for the script.
pub(crate) struct Live {
    /// The stream of changes.
    pub(crate) events: String,
    /// The part of the page inside `#live`.
    pub(crate) fragment: String,
}

impl Frame<'_> {
    /// The whole page.
    pub(crate) fn around(&self, body: &str) -> String {
        let live = self.live.as_ref().map_or_else(String::new, |live| {
            format!(" data-events=\"{}\" data-fragment=\"{}\"", escape(&live.events), escape(&live.fragment))
        });
        let script = if self.live.is_some() { "<script src=\"/live.js\" defer></script>" } else { "" };
        let note = match self.live {
            Some(_) => "<noscript><p>Without JavaScript, this page shows what was there when it was loaded.</p></noscript>",
            None => "",
        };
        let sign_out = match self.signed_in {
            true => "<form method=\"post\" action=\"/logout\"><button type=\"submit\">Sign out</button></form>",
            false => "",
        };
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n\
             <title>{title} · DeepCluster</title>\n<link rel=\"icon\" href=\"{ICON}\">\n\
             <style>{STYLE}\n{own}</style>\n{script}\n</head>\n\
             <body{live}>\n<a class=\"skip\" href=\"#main\">Skip to the content</a>\n\
             <header class=\"top\"><nav aria-label=\"Pages\"><a href=\"/\">DeepCluster: all runs</a></nav>\
             <p id=\"connection\" hidden>The coordinator does not answer; what stands here may be old.</p>{sign_out}</header>\n\
             <main id=\"main\" tabindex=\"-1\">\n{note}{body}\n</main>\n\
             <p id=\"say\" class=\"heard\" role=\"status\" aria-live=\"polite\"></p>\n</body>\n</html>\n",
            title = escape(self.title),
            own = include_str!("page.css"),
        )
    }
}

/// Why there is no page.
pub(crate) struct Failure {
    status: StatusCode,
    sentence: String,
}

impl Failure {
    /// With a sentence for people.
    pub(crate) fn new(status: StatusCode, sentence: impl Into<String>) -> Self {
        Self { status, sentence: sentence.into() }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let code = match status.code() {
            Code::InvalidArgument => StatusCode::BAD_REQUEST,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::FailedPrecondition | Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
            Code::ResourceExhausted => StatusCode::INSUFFICIENT_STORAGE,
            Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(code, status.message())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let what = self.status.canonical_reason().unwrap_or("No page");
        let body = format!(
            "<h1>{what}</h1><p role=\"alert\">{sentence}</p><p><a href=\"/\">To all runs</a></p>",
            sentence = escape(&self.sentence)
        );
        (self.status, Html(Frame { title: what, ..Frame::default() }.around(&body))).into_response()
    }
}

/// A text that the script keeps up to date under `key`. Under `field` it has the name that the API has for it.
pub(crate) fn live(key: &str, field: &str, text: &str) -> String {
    let field = if field.is_empty() { String::new() } else { format!(" data-field=\"{field}\"") };
    format!("<span data-live=\"{}\"{field}>{}</span>", escape(key), escape(text))
}

/// A number under the name that the API has for it.
pub(crate) fn field(name: &str, value: impl std::fmt::Display) -> String {
    format!("<span data-field=\"{name}\">{}</span>", escape(&value.to_string()))
}

/// A bar of a hundred parts that the script keeps up to date under `key`.
pub(crate) fn bar(key: &str, percent: &str, label: &str) -> String {
    let value = if percent.is_empty() { String::new() } else { format!(" value=\"{percent}\"") };
    let hidden = if percent.is_empty() { " hidden" } else { "" };
    let (key, label) = (escape(key), escape(label));
    format!("<progress data-live=\"{key}\" max=\"100\"{value} aria-label=\"{label}\"{hidden}>{percent} %</progress>")
}

/// Parts of a hundred, as "33.3"; empty when there is no whole.
pub(crate) fn percent(part: u64, whole: u64) -> String {
    match whole {
        0 => String::new(),
        _ => format!("{:.1}", part.min(whole) as f64 * 100.0 / whole as f64),
    }
}

/// A span of time in its two largest units: "45 s", "3 min 20 s", "2 h 5 min", "3 d 4 h".
pub(crate) fn span(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "unknown".to_owned();
    }
    let seconds = seconds.round() as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// A score with three digits after the point.
pub(crate) fn score(value: Option<f64>) -> String {
    value.map_or("–".to_owned(), |value| format!("{value:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_parts_are_written_for_people() {
        let seconds = [0.4, 59.4, 59.6, 200.0, 7_500.0, 273_600.0, f64::NAN, -1.0];
        let written = ["0 s", "59 s", "1 min 0 s", "3 min 20 s", "2 h 5 min", "3 d 4 h", "unknown", "unknown"];
        assert_eq!(seconds.map(span), written.map(str::to_owned));
        assert_eq!([percent(1, 3), percent(5, 4), percent(1, 0)], ["33.3", "100.0", ""]);
    }

    #[test]
    fn a_page_holds_what_it_is_given_as_text() {
        let failure = Failure::from(Status::not_found("there is no run <script>"));
        assert_eq!(failure.status, StatusCode::NOT_FOUND);
        let page = Frame { title: "<b>", signed_in: true, ..Frame::default() }.around("<h1>x</h1>");
        assert!(page.contains("<title>&lt;b&gt; ") && page.contains("Sign out") && !page.contains("/live.js"), "{page}");
        assert!(live("a\"b", "k", "<i>").contains("data-live=\"a&quot;b\" data-field=\"k\">&lt;i&gt;<"));
    }
}
