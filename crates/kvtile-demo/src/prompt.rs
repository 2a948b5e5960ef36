//! The text of the demonstration and its questions.

/// A handbook of about 1,300 tokens, written for this demonstration.
pub const HANDBOOK: &str = include_str!("../assets/handbook.txt");

/// The questions about [`HANDBOOK`], one per request. They begin with different letters, so that
/// the prompts share exactly the handbook. The answer to the last one is near its end.
pub const QUESTIONS: [&str; 3] = [
    "How often does the supply boat come?",
    "Describe how to clean the glass of the lantern.",
    "What is the name of the cat on the station?",
];

/// Handbook and question as one message of a user.
pub fn message(question: &str) -> String {
    format!("{HANDBOOK}\n\n{question}")
}
