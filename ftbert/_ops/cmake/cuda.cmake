# Decides whether CUDA kernels are compiled and for which architectures. Sets
#   FTBERT_HAVE_CUDA         nvcc works and CUDA was not switched off; the CUDA language is then enabled
#   FTBERT_CUDA_ARCH_LIST    architectures, e.g. 80;86;89;90a;100;120
#   CMAKE_CUDA_ARCHITECTURES machine code for each of them, PTX for the last, so that newer cards can still run
#   FTBERT_CUBLAS_INCLUDE    folder of cublasLt.h, or NOTFOUND
set(FTBERT_HAVE_CUDA OFF)
string(TOUPPER "${FTBERT_CUDA}" FTBERT_CUDA_MODE)
if(FTBERT_CUDA_MODE MATCHES "^(0|OFF|NO|FALSE)$")
  message(STATUS "ftbert: CUDA is switched off; the GPU engine is not built")
  return()
endif()

include(CheckLanguage)
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES OFF)  # our own list follows; CMake's default may be one that a new nvcc has dropped
endif()
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(FTBERT_CUDA_MODE MATCHES "^(1|ON|YES|TRUE)$")
    message(FATAL_ERROR "ftbert: CUDA was asked for (FTBERT_CUDA=${FTBERT_CUDA}) but no working nvcc was found. "
                        "Install the CUDA toolkit and put nvcc on PATH or set CUDACXX, or build with FTBERT_CUDA=0.")
  endif()
  message(STATUS "ftbert: no nvcc found; the GPU engine is not built (put nvcc on PATH to get it)")
  return()
endif()
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.0)
  set(FTBERT_OLD_CUDA "ftbert: expected CUDA 12.0 or newer, found ${CMAKE_CUDA_COMPILER_VERSION}")
  if(FTBERT_CUDA_MODE MATCHES "^(1|ON|YES|TRUE)$")
    message(FATAL_ERROR "${FTBERT_OLD_CUDA}. Install a newer toolkit, or build with FTBERT_CUDA=0.")
  endif()
  message(STATUS "${FTBERT_OLD_CUDA}; the GPU engine is not built")
  return()
endif()
set(FTBERT_HAVE_CUDA ON)

if(FTBERT_CUDA_ARCHS)
  string(REGEX REPLACE "[, ]+" ";" FTBERT_CUDA_ARCH_LIST "${FTBERT_CUDA_ARCHS}")
  string(REPLACE "sm_" "" FTBERT_CUDA_ARCH_LIST "${FTBERT_CUDA_ARCH_LIST}")
else()
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-code OUTPUT_VARIABLE known ERROR_QUIET
                  OUTPUT_STRIP_TRAILING_WHITESPACE)
  string(REGEX MATCHALL "sm_[0-9]+" known "${known}")  # 90 stands for 90a, which is listed by its plain number only
  set(FTBERT_CUDA_ARCH_LIST "")
  foreach(arch 80 86 89 90a 100 120)
    string(REGEX REPLACE "[a-z]$" "" plain ${arch})
    if("sm_${plain}" IN_LIST known)
      list(APPEND FTBERT_CUDA_ARCH_LIST ${arch})
    endif()
  endforeach()
endif()
if(NOT FTBERT_CUDA_ARCH_LIST)
  message(FATAL_ERROR "ftbert: ${CMAKE_CUDA_COMPILER} knows none of sm_80, 86, 89, 90a, 100, 120. Use CUDA 12.0 or "
                      "newer, name architectures in FTBERT_CUDA_ARCHS, or build with FTBERT_CUDA=0.")
endif()
set(CMAKE_CUDA_ARCHITECTURES "")
foreach(arch ${FTBERT_CUDA_ARCH_LIST})
  list(APPEND CMAKE_CUDA_ARCHITECTURES ${arch}-real)
endforeach()
list(GET FTBERT_CUDA_ARCH_LIST -1 last)
list(APPEND CMAKE_CUDA_ARCHITECTURES ${last}-virtual)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)

# The toolkit's, else those of PyPI's nvidia-cublas packages (setup.py names the folders in FTBERT_CUBLAS_HINTS).
find_path(FTBERT_CUBLAS_INCLUDE cublasLt.h
          HINTS ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES} ${FTBERT_CUBLAS_HINTS})
message(STATUS "ftbert: CUDA ${CMAKE_CUDA_COMPILER_VERSION}, architectures ${FTBERT_CUDA_ARCH_LIST}, "
               "cuBLASLt headers: ${FTBERT_CUBLAS_INCLUDE}")
