//! The text that the demonstration reads, and what it asks.

/// A handbook of about 1,300 tokens, written for this demonstration.
pub const HANDBOOK: &str = include_str!("../assets/handbook.txt");

/// A question whose answer stands near the end of [`HANDBOOK`].
pub const QUESTION: &str = "What is the name of the cat on the station?";

/// Handbook and question as one message of a user.
pub fn message() -> String {
    format!("{HANDBOOK}\n\n{QUESTION}")
}
