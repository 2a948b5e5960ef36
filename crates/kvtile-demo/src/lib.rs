//! A small Llama on the CPU whose KV cache lives in kvtile blocks, for the demonstration and its tests.
