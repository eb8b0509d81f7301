//! Small parts of HTML: escaped text, figures for people, pictures inside of the page.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Text for HTML, in elements and in quoted attributes. What no page may contain (control characters) is replaced.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(c),
            c if c.is_control() => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A picture as an address that needs no network. `format` is "jpeg" or "png".
pub(crate) fn data_uri(format: &str, bytes: &[u8]) -> String {
    format!("data:image/{format};base64,{}", STANDARD.encode(bytes))
}

/// A count with commas between its thousands.
pub(crate) fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A count and what is counted, of which there may be one.
pub(crate) fn counted(n: usize, one: &str, many: &str) -> String {
    format!("{} {}", grouped(n), if n == 1 { one } else { many })
}

/// A share in percent, with one decimal below ten.
pub(crate) fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent < 9.95 { format!("{percent:.1} %") } else { format!("{percent:.0} %") }
}

/// A clause as a sentence: a capital at its beginning, a full stop at its end.
pub(crate) fn sentence(clause: &str) -> String {
    let clause = clause.trim();
    let mut chars = clause.chars();
    let Some(first) = chars.next() else { return String::new() };
    let end = if clause.ends_with(['.', '!', '?']) { "" } else { "." };
    format!("{}{}{end}", first.to_uppercase(), chars.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_users_write_becomes_markup() {
        assert_eq!(escape("<b a=\"1\" c='2'>&amp;\u{0}"), "&lt;b a=&quot;1&quot; c=&#39;2&#39;&gt;&amp;amp;\u{fffd}");
        assert_eq!(escape("日本\nünïcode"), "日本\nünïcode");
    }

    #[test]
    fn figures_read_well() {
        assert_eq!([grouped(0), grouped(999), grouped(1000), grouped(1_281_167)], ["0", "999", "1,000", "1,281,167"]);
        assert_eq!([percent(0.0123), percent(0.789), percent(1.0)], ["1.2 %", "79 %", "100 %"]);
        assert_eq!(sentence("lower --lr"), "Lower --lr.");
        assert_eq!(counted(1, "image", "images"), "1 image");
    }
}
