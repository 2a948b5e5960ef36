//! KV cache blocks of language models in any layout and any memory, moved at the speed of the memory.
