//! What an error of the client means for the caller.

use kvtile_shared::store::{SharedStoreError, StoreErrorKind, StoreOperation};
use object_store::Error;

/// The error of a call. Messages of the client have no credentials: they go into headers, and it
/// leaves out URLs that have any.
pub(crate) fn failed(operation: StoreOperation, error: Error) -> SharedStoreError {
    let kind = match &error {
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            StoreErrorKind::Configuration
        }
        Error::NotSupported { .. } | Error::NotImplemented { .. } | Error::InvalidPath { .. } => {
            StoreErrorKind::Refused
        }
        Error::Generic { .. } if is_about_credentials(&error) => StoreErrorKind::Configuration,
        Error::Generic { .. } if is_refusal(&error) => StoreErrorKind::Refused,
        _ => StoreErrorKind::Transient,
    };
    SharedStoreError::new(kind, operation, one_line(&error)).caused_by(error)
}

/// Whether the server's answer is that of a wrong request: status 400 to 499, but for those that
/// mean "later".
pub(crate) fn is_refusal(error: &Error) -> bool {
    let later = [408, 425, 429];
    status(error).is_some_and(|status| (400..500).contains(&status) && !later.contains(&status))
}

/// The codes of answers that the credentials are no longer those of a user. S3 answers them with status 400.
const CREDENTIAL_CODES: &[&str] = &["ExpiredToken", "InvalidToken", "TokenRefreshRequired"];

/// Whether the server refuses the credentials, and perhaps accepts the same request with new ones.
fn is_about_credentials(error: &Error) -> bool {
    let is_refused = matches!(status(error), Some(401 | 403));
    let text = error.to_string();
    let has_code = |code: &&str| text.contains(&format!("<Code>{code}</Code>"));
    is_refused || CREDENTIAL_CODES.iter().any(has_code)
}

/// Whether the server's answer is that it never copies an object onto itself.
pub(crate) fn is_refused_copy(error: &Error) -> bool {
    let is_refused = is_refusal(error) || status(error) == Some(501);
    is_refused && !is_about_credentials(error)
}

/// Whether the server's answer is that a range begins behind the end of the object.
pub(crate) fn is_past_end(error: &Error) -> bool {
    status(error) == Some(416)
}

/// The status of the server's answer.
fn status(error: &Error) -> Option<u16> {
    let text = error.to_string();
    let (_, rest) = text.split_once("status code: ")?;
    rest.get(..3)?.parse().ok()
}

/// Messages of servers are documents of several lines; the first 400 characters state what is wrong.
pub(crate) fn one_line(error: &Error) -> String {
    let text = error.to_string();
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut line = words.join(" ");
    if let Some((end, _)) = line.char_indices().nth(400) {
        line.truncate(end);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(text: &str) -> Error {
        Error::Generic {
            store: "S3",
            source: text.into(),
        }
    }

    #[test]
    fn the_status_of_an_answer_decides_whether_to_try_again() {
        let kind = |text: &str| failed(StoreOperation::Read, generic(text)).kind();
        let non_2xx =
            |status: &str| format!("x - Server returned non-2xx status code: {status}: y");
        assert_eq!(kind(&non_2xx("400 Bad Request")), StoreErrorKind::Refused);
        assert_eq!(kind(&non_2xx("413 Too Large")), StoreErrorKind::Refused);
        assert!(is_past_end(&generic(&non_2xx("416 Range Not Satisfiable"))));
        assert!(!is_past_end(&generic(&non_2xx("404 Not Found"))));
        for later in ["429 Too Many Requests", "503 Slow Down", "408 Timeout"] {
            assert_eq!(kind(&non_2xx(later)), StoreErrorKind::Transient, "{later}");
        }
        assert_eq!(kind("connection refused"), StoreErrorKind::Transient);
        let expired = non_2xx("400 Bad Request: <Error><Code>ExpiredToken</Code></Error>");
        assert_eq!(kind(&expired), StoreErrorKind::Configuration);
        for (text, is_refused) in [
            (non_2xx("400 Bad Request"), true),
            (non_2xx("501 Not Implemented"), true),
            (non_2xx("403 Forbidden"), false),
            (expired, false),
            (non_2xx("503 Slow Down"), false),
        ] {
            assert_eq!(is_refused_copy(&generic(&text)), is_refused, "{text}");
        }
    }

    #[test]
    fn a_message_is_one_short_line() {
        let error = failed(StoreOperation::Read, generic(&"<a>\n  é".repeat(500)));
        let text = error.to_string();
        assert!(text.chars().count() < 420 && !text.contains('\n'), "{text}");
    }
}
