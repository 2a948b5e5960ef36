//! Naive reference models and generators that the tests of the other crates compare against.
