//! KV cache layouts as arithmetic: the layout language, shapes, digits, copy plans and identity.
