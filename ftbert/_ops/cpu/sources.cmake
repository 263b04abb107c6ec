# Sources of the CPU backend, included by the top CMakeLists.txt: sets FTBERT_CPU_SOURCES (paths relative to _ops/).
#
# One instruction set per file. A file compiled for more than the baseline keeps everything it defines in its own
# namespace (see vec.h), because an inline function with a shared name, once compiled with AVX-512, could be the copy
# that the linker keeps for the portable path. Levels the compiler does not know are left out; isa.cc is told which are
# in.
include(CheckCXXCompilerFlag)

set(FTBERT_CPU_SOURCES
    cpu/backend.cc
    cpu/cpu_count.cc
    cpu/embedding_tables.cc
    cpu/feed_forward.cc
    cpu/groups.cc
    cpu/isa.cc
    cpu/linear.cc
    cpu/linear_fp32.cc
    cpu/linear_bf16.cc
    cpu/linear_int8.cc
    cpu/linear_int8_bf16.cc
    cpu/memory.cc
    cpu/product.cc
    cpu/thread_pool.cc
    cpu/workspace.cc
    cpu/kernels_portable.cc
)
set(FTBERT_CPU_DEFINITIONS "")

set(FTBERT_FLAGS_AVX2 -mavx2 -mfma -mf16c)
set(FTBERT_FLAGS_AVX2_VNNI ${FTBERT_FLAGS_AVX2} -mavxvnni)
set(FTBERT_FLAGS_AVX512 ${FTBERT_FLAGS_AVX2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512cd)
set(FTBERT_FLAGS_AVX512_VNNI ${FTBERT_FLAGS_AVX512} -mavx512vnni)
set(FTBERT_FLAGS_AVX512_BF16 ${FTBERT_FLAGS_AVX512_VNNI} -mavx512bf16)
set(FTBERT_FLAGS_AMX ${FTBERT_FLAGS_AVX512_BF16} -mamx-tile -mamx-bf16 -mamx-int8)

# No contraction of a*b+c: where a fused multiply-add is meant, it is written. GCC 12 warns of its own intrinsics'
# undefined operands, and of how vectors would be passed by functions that are all inlined.
set(FTBERT_KERNEL_FLAGS -ffp-contract=off -Wno-maybe-uninitialized -Wno-uninitialized -Wno-psabi)

# ftbert_cpu_level(<LEVEL> <source>...): compiles the sources with FTBERT_FLAGS_<LEVEL> and defines FTBERT_WITH_<LEVEL>.
function(ftbert_cpu_level level)
  string(REPLACE ";" " " flags "${FTBERT_FLAGS_${level}}")
  set(CMAKE_REQUIRED_QUIET ON)
  check_cxx_compiler_flag("${flags}" FTBERT_HAVE_${level})
  if(NOT FTBERT_HAVE_${level})
    return()
  endif()
  set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS "${FTBERT_FLAGS_${level}};${FTBERT_KERNEL_FLAGS}")
  set(FTBERT_CPU_SOURCES ${FTBERT_CPU_SOURCES} ${ARGN} PARENT_SCOPE)
  set(FTBERT_CPU_DEFINITIONS ${FTBERT_CPU_DEFINITIONS} FTBERT_WITH_${level} PARENT_SCOPE)
endfunction()

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  ftbert_cpu_level(AVX2 cpu/kernels_avx2.cc cpu/linear_bf16_avx2.cc cpu/linear_int8_avx2.cc)
  ftbert_cpu_level(AVX2_VNNI cpu/linear_int8_avx2vnni.cc)
  ftbert_cpu_level(AVX512 cpu/kernels_avx512.cc cpu/linear_bf16_avx512.cc)
  ftbert_cpu_level(AVX512_VNNI cpu/linear_int8_avx512vnni.cc)
  ftbert_cpu_level(AVX512_BF16 cpu/linear_bf16_avx512bf16.cc)
  ftbert_cpu_level(AMX cpu/attention_amx.cc cpu/linear_amx.cc cpu/linear_fp32_amx.cc)
endif()

set_source_files_properties(cpu/kernels_portable.cc PROPERTIES COMPILE_OPTIONS "${FTBERT_KERNEL_FLAGS}")
set_property(SOURCE cpu/isa.cc cpu/linear_fp32.cc cpu/linear_bf16.cc cpu/linear_int8.cc
             APPEND PROPERTY COMPILE_DEFINITIONS ${FTBERT_CPU_DEFINITIONS})
