//! Identity: what must be equal before stored bytes may be used.
