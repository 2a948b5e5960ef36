// Permuting copies on a device: rows of vectors, and transposes of small elements through shared memory.
//
// kvtile-kernels/src/parameters.rs has the same structures; both sides assert their sizes. The lowering in
// kvtile-kernels/src/lower checks everything that these kernels assume: alignment, extents of at least 1, fewer
// than 2^31 items, tiles that fit. Every thread of a block passes every barrier.
//
// Loads go through `ld.global.nc`: during a launch nothing may write what it reads.

// One side of a loop: index i adds table[i], or i * stride where there is no table. Sums wrap.
struct Side {
    u64 stride;
    const u64 *table;
};

// n / extent is `(n * magic >> 32) >> shift` for n < 2^31; magic 0 is an extent of 1.
struct Loop {
    u32 extent, magic, shift, pad;
    Side source, destination;
};

// Runs of `vectors` vectors, at most the lanes of a group. An item is up to `walk` runs along loop 0, which has no table; the item's number is
// a chunk of loop 0, then the indices of loops 1…, innermost first.
struct Rows {
    u64 source, destination;
    u32 items, loops, vectors, group_log2;
    u32 walk, chunks, chunks_magic, chunks_shift;
    Loop loop[8];
};

// Matrices of `rows` x `columns` elements: dense along columns in the source, along rows in the destination.
// `words` counts words of four bytes in a row, `pitch` those between rows in shared memory; each group of rows that
// one store covers starts `skew` words later.
struct Tile {
    u64 source, destination, source_stride, destination_stride;
    u32 tiles, loops, rows, words;
    u32 pitch, skew, load_bytes, store_bytes;
    u32 loads, load_magic, load_shift, stores;
    u32 words_magic, words_shift, store_rows_log2, pad;
    Loop loop[8];
};

static_assert(sizeof(Side) == 16 && sizeof(Loop) == 48, "see parameters.rs");
static_assert(sizeof(Rows) == 432 && sizeof(Tile) == 480, "see parameters.rs");

constexpr u32 ROWS_THREADS = 256, TILES_THREADS = 128, BLOCKS_OF_CORE = 8;
// Words of shared memory of a tile, and tiles whose places the threads of a block, at least as many, decode at once.
constexpr u32 TILE_WORDS = 4096 + 1024, PLACES = 32;
constexpr u32 IN_FLIGHT = 4;

template <u32 bytes> struct Vector;
template <> struct Vector<16> {
    u32 a, b, c, d;
};
template <> struct Vector<8> {
    u32 a, b;
};
template <> struct Vector<4> {
    u32 a;
};
template <> struct Vector<2> {
    u16 a;
};
template <> struct Vector<1> {
    u16 a;
};

__inline void load(Vector<16> &v, u64 at) {
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.a), "=r"(v.b), "=r"(v.c), "=r"(v.d)
                 : "l"(at));
}
__inline void load(Vector<8> &v, u64 at) {
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.a), "=r"(v.b) : "l"(at));
}
__inline void load(Vector<4> &v, u64 at) {
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v.a) : "l"(at));
}
// Small elements share lines of L1 with their neighbours, so these stay in it.
__inline void load(Vector<2> &v, u64 at) {
    asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(v.a) : "l"(at));
}
__inline void load(Vector<1> &v, u64 at) {
    asm volatile("ld.global.nc.u8 %0, [%1];" : "=h"(v.a) : "l"(at));
}

__inline void store(u64 at, const Vector<16> &v) {
    asm volatile("st.global.cg.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(v.a), "r"(v.b), "r"(v.c), "r"(v.d)
                 : "memory");
}
__inline void store(u64 at, const Vector<8> &v) {
    asm volatile("st.global.cg.v2.u32 [%0], {%1, %2};" ::"l"(at), "r"(v.a), "r"(v.b) : "memory");
}
__inline void store(u64 at, const Vector<4> &v) {
    asm volatile("st.global.cg.u32 [%0], %1;" ::"l"(at), "r"(v.a) : "memory");
}
__inline void store(u64 at, const Vector<2> &v) {
    asm volatile("st.global.cg.u16 [%0], %1;" ::"l"(at), "h"(v.a) : "memory");
}
__inline void store(u64 at, const Vector<1> &v) {
    asm volatile("st.global.cg.u8 [%0], %1;" ::"l"(at), "h"(v.a) : "memory");
}

__inline u32 divide(u32 n, u32 magic, u32 shift) {
    return magic == 0 ? n : u32(u64(n) * magic >> 32) >> shift;
}

__inline u64 step(const Side &side, u32 index) {
    return side.table ? side.table[index] : index * side.stride;
}

// Adds the steps of loops `first`… for the combination `rest` of their indices.
__inline void decode(const Loop *loop, u32 first, u32 loops, u32 rest, u64 &source, u64 &destination) {
    for (u32 l = first; l < loops; ++l) {
        u32 outer = divide(rest, loop[l].magic, loop[l].shift);
        u32 index = rest - outer * loop[l].extent;
        source += step(loop[l].source, index);
        destination += step(loop[l].destination, index);
        rest = outer;
    }
}

template <u32 bytes> __inline void rows(const Rows &p) {
    u32 group = 1u << p.group_log2;
    u32 lane = THREAD & (group - 1);
    u32 groups = BLOCKS * (THREADS >> p.group_log2);
    u32 first = BLOCK * (THREADS >> p.group_log2) + (THREAD >> p.group_log2);
    u64 from_step = p.loop[0].source.stride, to_step = p.loop[0].destination.stride;
    for (u32 item = first; item < p.items; item += groups) {
        u32 outer = divide(item, p.chunks_magic, p.chunks_shift);
        u32 begin = (item - outer * p.chunks) * p.walk;
        u32 left = p.loop[0].extent - begin;
        u32 runs = left < p.walk ? left : p.walk;
        u64 source = p.source + begin * from_step, destination = p.destination + begin * to_step;
        decode(p.loop, 1, p.loops, outer, source, destination);
        if (lane >= p.vectors)
            continue;
        u64 from = source + lane * bytes, to = destination + lane * bytes;
        u32 run = 0;
        for (; run + IN_FLIGHT <= runs; run += IN_FLIGHT) {
            Vector<bytes> a, b, c, d;
            load(a, from);
            load(b, from + from_step);
            load(c, from + 2 * from_step);
            load(d, from + 3 * from_step);
            store(to, a);
            store(to + to_step, b);
            store(to + 2 * to_step, c);
            store(to + 3 * to_step, d);
            from += IN_FLIGHT * from_step;
            to += IN_FLIGHT * to_step;
        }
        for (; run < runs; ++run) {
            Vector<bytes> a;
            load(a, from);
            store(to, a);
            from += from_step;
            to += to_step;
        }
    }
}

struct Place {
    u64 source, destination;
};

__shared__ __attribute__((aligned(16))) u32 tile_words[TILE_WORDS];
__shared__ Place places[PLACES];

__inline u32 *shared_row(const Tile &p, u32 row) {
    return tile_words + row * p.pitch + (row >> p.store_rows_log2) * p.skew;
}

__inline void keep(u32 *to, const Vector<16> &v) {
    *(Vector<16> *)__builtin_assume_aligned(to, 16) = v;
}
__inline void keep(u32 *to, const Vector<8> &v) {
    *(Vector<8> *)__builtin_assume_aligned(to, 8) = v;
}
__inline void keep(u32 *to, const Vector<4> &v) {
    to[0] = v.a;
}

// Reads a tile along its columns.
template <u32 bytes> __inline void bring(const Tile &p, u64 source) {
    u32 all = p.rows * p.loads;
    auto locate = [&](u32 at, u32 &row, u32 &word) {
        row = divide(at, p.load_magic, p.load_shift);
        word = (at - row * p.loads) * (bytes / 4);
    };
    u32 at = THREAD;
    for (; at + THREADS < all; at += 2 * THREADS) {
        u32 row, word, next_row, next_word;
        locate(at, row, word);
        locate(at + THREADS, next_row, next_word);
        Vector<bytes> a, b;
        load(a, source + row * p.source_stride + word * 4);
        load(b, source + next_row * p.source_stride + next_word * 4);
        keep(shared_row(p, row) + word, a);
        keep(shared_row(p, next_row) + next_word, b);
    }
    if (at < all) {
        u32 row, word;
        locate(at, row, word);
        Vector<bytes> a;
        load(a, source + row * p.source_stride + word * 4);
        keep(shared_row(p, row) + word, a);
    }
}

// Turns words of four rows, each with `4 / element` columns, into one word of each column.
__inline u32 permute(u32 a, u32 b, u32 selector) {
    u32 d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(selector));
    return d;
}

// The vectors of `bytes` bytes of the columns in one word: `in` has `bytes / element` rows, `out[c][i]` is word i of
// column c.
template <u32 element, u32 bytes> struct Turn;
template <u32 bytes> struct Turn<4, bytes> {
    static __inline void turn(const u32 *in, u32 (*out)[bytes / 4]) {
        for (u32 i = 0; i < bytes / 4; ++i)
            out[0][i] = in[i];
    }
};
template <u32 bytes> struct Turn<2, bytes> {
    static __inline void turn(const u32 *in, u32 (*out)[bytes / 4]) {
        for (u32 i = 0; i < bytes / 4; ++i) {
            out[0][i] = permute(in[2 * i], in[2 * i + 1], 0x5410);
            out[1][i] = permute(in[2 * i], in[2 * i + 1], 0x7632);
        }
    }
};
template <u32 bytes> struct Turn<1, bytes> {
    static __inline void turn(const u32 *in, u32 (*out)[bytes / 4]) {
        for (u32 i = 0; i < bytes / 4; ++i) {
            const u32 *row = in + 4 * i;
            u32 low_a = permute(row[0], row[1], 0x5140), low_b = permute(row[2], row[3], 0x5140);
            u32 high_a = permute(row[0], row[1], 0x7362), high_b = permute(row[2], row[3], 0x7362);
            out[0][i] = permute(low_a, low_b, 0x5410);
            out[1][i] = permute(low_a, low_b, 0x7632);
            out[2][i] = permute(high_a, high_b, 0x5410);
            out[3][i] = permute(high_a, high_b, 0x7632);
        }
    }
};

__inline Vector<16> vector_of(const u32 (&w)[4]) {
    return {w[0], w[1], w[2], w[3]};
}
__inline Vector<8> vector_of(const u32 (&w)[2]) {
    return {w[0], w[1]};
}
__inline Vector<4> vector_of(const u32 (&w)[1]) {
    return {w[0]};
}

// Writes a tile along its rows. Two neighbouring lanes share a word and have neighbouring stores, then come the words,
// then the other stores: with `skew` no two of the 32 lanes read different words of one bank.
template <u32 element, u32 bytes> __inline void put(const Tile &p, u64 destination) {
    constexpr u32 rows_of_store = bytes / element, columns = 4 / element;
    u32 all = p.stores * p.words;
    u32 both = p.stores & ~1u;
    for (u32 at = THREAD; at < all; at += THREADS) {
        u32 word, store_number;
        if (at < both * p.words) {
            u32 pair = at >> 1;
            u32 outer = divide(pair, p.words_magic, p.words_shift);
            word = pair - outer * p.words;
            store_number = outer * 2 + (at & 1);
        } else {
            word = at - both * p.words;
            store_number = both;
        }
        const u32 *from = tile_words + store_number * (rows_of_store * p.pitch + p.skew) + word;
        u32 in[rows_of_store], out[columns][bytes / 4];
        for (u32 i = 0; i < rows_of_store; ++i, from += p.pitch)
            in[i] = *from;
        Turn<element, bytes>::turn(in, out);
        u64 to = destination + u64(word) * columns * p.destination_stride + store_number * bytes;
        for (u32 c = 0; c < columns; ++c) {
            store(to, vector_of(out[c]));
            to += p.destination_stride;
        }
    }
}

template <u32 element> __inline void tiles(const Tile &p) {
    // Consecutive tiles for each block, so that the first threads decode many places at once.
    u32 each = (p.tiles + BLOCKS - 1) / BLOCKS;
    u32 first = BLOCK * each;
    u32 end = first + each < p.tiles ? first + each : p.tiles;
    for (u32 begin = first; begin < end; begin += PLACES) {
        u32 count = end - begin < PLACES ? end - begin : PLACES;
        if (THREAD < count) {
            Place place = {p.source, p.destination};
            decode(p.loop, 0, p.loops, begin + THREAD, place.source, place.destination);
            places[THREAD] = place;
        }
        __syncthreads();
        for (u32 i = 0; i < count; ++i) {
            Place place = places[i];
            if (p.load_bytes == 16)
                bring<16>(p, place.source);
            else if (p.load_bytes == 8)
                bring<8>(p, place.source);
            else
                bring<4>(p, place.source);
            __syncthreads();
            if (p.store_bytes == 16)
                put<element, 16>(p, place.destination);
            else if (p.store_bytes == 8)
                put<element, 8>(p, place.destination);
            else
                put<element, 4>(p, place.destination);
            __syncthreads();
        }
    }
}

#define ROWS(bytes)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(ROWS_THREADS, BLOCKS_OF_CORE) rows_##bytes(const Rows p) {                            \
        rows<bytes>(p);                                                                                                \
    }
#define TILES(element)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(TILES_THREADS, BLOCKS_OF_CORE) tiles_##element(const Tile p) {                        \
        tiles<element>(p);                                                                                             \
    }

ROWS(16)
ROWS(8)
ROWS(4)
ROWS(2)
ROWS(1)
TILES(4)
TILES(2)
TILES(1)
