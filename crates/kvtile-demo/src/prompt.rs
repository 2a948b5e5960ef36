//! The text that the demonstration reads, and what it asks.

/// A handbook of about 1,300 tokens, written for this demonstration.
pub const HANDBOOK: &str = include_str!("../assets/handbook.txt");

/// What is asked about [`HANDBOOK`], one question a request. They begin with different letters: what
/// the prompts share is the handbook and nothing more. The answer to the last one stands near its
/// end.
pub const QUESTIONS: [&str; 3] = [
    "How often does the supply boat come?",
    "Describe how to clean the glass of the lantern.",
    "What is the name of the cat on the station?",
];

/// Handbook and question as one message of a user.
pub fn message(question: &str) -> String {
    format!("{HANDBOOK}\n\n{question}")
}
