# Sources of the CPU backend, included by the top CMakeLists.txt: sets FTBERT_CPU_SOURCES (paths relative to _ops/).
#
# One instruction set per file. A file compiled for more than the baseline keeps everything it defines in its own
# namespace (see vec.h), because an inline function with a shared name, once compiled with AVX-512, could be the copy that the
# linker keeps for the portable path. Levels the compiler does not know are left out; isa.cc is told which are in.
include(CheckCXXCompilerFlag)

set(FTBERT_CPU_SOURCES
    cpu/backend.cc
    cpu/isa.cc
    cpu/linear.cc
    cpu/linear_fp32.cc
    cpu/linear_low.cc
    cpu/memory.cc
    cpu/thread_pool.cc
    cpu/kernels_portable.cc
)
set(FTBERT_CPU_DEFINITIONS "")

set(FTBERT_FLAGS_AVX2 -mavx2 -mfma -mf16c)
set(FTBERT_FLAGS_AVX512 ${FTBERT_FLAGS_AVX2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512cd)
set(FTBERT_FLAGS_AVX512_VNNI ${FTBERT_FLAGS_AVX512} -mavx512vnni)
set(FTBERT_FLAGS_AVX512_BF16 ${FTBERT_FLAGS_AVX512_VNNI} -mavx512bf16)
set(FTBERT_FLAGS_AMX ${FTBERT_FLAGS_AVX512_BF16} -mamx-tile -mamx-bf16 -mamx-int8)

# ftbert_cpu_level(<LEVEL> <source>...): compiles the sources with FTBERT_FLAGS_<LEVEL> and defines FTBERT_WITH_<LEVEL>.
function(ftbert_cpu_level level)
  string(REPLACE ";" " " flags "${FTBERT_FLAGS_${level}}")
  set(CMAKE_REQUIRED_QUIET ON)
  check_cxx_compiler_flag("${flags}" FTBERT_HAVE_${level})
  if(NOT FTBERT_HAVE_${level})
    return()
  endif()
  # No contraction of a*b+c: where a fused multiply-add is meant, it is written.
  set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS "${FTBERT_FLAGS_${level}};-ffp-contract=off")
  set(FTBERT_CPU_SOURCES ${FTBERT_CPU_SOURCES} ${ARGN} PARENT_SCOPE)
  set(FTBERT_CPU_DEFINITIONS ${FTBERT_CPU_DEFINITIONS} FTBERT_WITH_${level} PARENT_SCOPE)
endfunction()

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  ftbert_cpu_level(AVX2 cpu/kernels_avx2.cc)
  ftbert_cpu_level(AVX512 cpu/kernels_avx512.cc)
endif()

set_property(SOURCE cpu/isa.cc cpu/linear_fp32.cc APPEND PROPERTY COMPILE_DEFINITIONS ${FTBERT_CPU_DEFINITIONS})
