// Compiles FTBERT_EMULATED, a file of AMX kernels, into a test: with plain loops for the tile instructions, so that its
// indexing is checked on machines without AMX, too. Its definitions take the place of the library's. FTBERT_EMULATES
// says that it could.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FTBERT_EMULATES
#define FTBERT_EMULATE_AMX
// GCC's own intrinsics start vectors from themselves and are warned about.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512vnni,avx512bf16")
#include FTBERT_EMULATED
#pragma GCC pop_options
#endif
