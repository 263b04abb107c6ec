// Stands in for CUDA's headers where kernels run on the CPU (../emulation.h): just what ftbert/_ops/cuda and its kernel
// check use of the language, the vector and 16- and 8-bit types, the device functions and the runtime.
#ifndef FTBERT_TESTS_CUDA_EMULATION_CUDA_RUNTIME_H_
#define FTBERT_TESTS_CUDA_EMULATION_CUDA_RUNTIME_H_

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static  // one CTA after the other; a cluster's are told apart by SharedAddress
#define __align__(bytes) __attribute__((aligned(bytes)))

// ---- Vectors ------------------------------------------------------------------------------------------------------
struct __align__(8) int2 { int x, y; };
struct __align__(8) uint2 { unsigned x, y; };
struct uint3 { unsigned x, y, z; };
struct __align__(8) float2 { float x, y; };
struct __align__(16) int4 { int x, y, z, w; };
struct __align__(16) uint4 { unsigned x, y, z, w; };
struct __align__(16) float4 { float x, y, z, w; };
inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

// ---- Numbers ------------------------------------------------------------------------------------------------------
struct __half { uint16_t bits; };
struct __half2 { __half x, y; };
struct __nv_bfloat16 { uint16_t bits; };
struct __nv_bfloat162 { __nv_bfloat16 x, y; };
uint8_t FloatToFloat8(float x);  // e4m3, saturated
float Float8ToFloat(uint8_t bits);
struct __nv_fp8_e4m3 {
  uint8_t bits;
  __nv_fp8_e4m3() = default;
  explicit __nv_fp8_e4m3(float x) : bits(FloatToFloat8(x)) {}
  explicit operator float() const { return Float8ToFloat(bits); }
};
float __half2float(__half x);
__half __float2half(float x);
inline __half __float2half_rn(float x) { return __float2half(x); }
inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half(x), __float2half(y)}; }
inline __half2 __float2half2_rn(float x) { return {__float2half(x), __float2half(x)}; }
inline __half2 __hmul2(__half2 a, __half2 b) {
  return {__float2half(__half2float(a.x) * __half2float(b.x)), __float2half(__half2float(a.y) * __half2float(b.y))};
}
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
  return {__float2half(std::fmaf(__half2float(a.x), __half2float(b.x), __half2float(c.x))),
          __float2half(std::fmaf(__half2float(a.y), __half2float(b.y), __half2float(c.y)))};
}
inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }
inline float __bfloat162float(__nv_bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
__nv_bfloat16 __float2bfloat16(float x);
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return __float2bfloat16(x); }
inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t bits) { return {bits}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__float2bfloat16(x), __float2bfloat16(y)}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {__bfloat162float(v.x), __bfloat162float(v.y)}; }
enum { __NV_SATFINITE = 1, __NV_E4M3 = 0 };
inline uint16_t __nv_cvt_float2_to_fp8x2(float2 v, int, int) {
  return static_cast<uint16_t>(FloatToFloat8(v.x) | FloatToFloat8(v.y) << 8);
}
using __half2_raw = __half2;
inline uint16_t __nv_cvt_halfraw2_to_fp8x2(__half2_raw v, int, int) {
  return static_cast<uint16_t>(FloatToFloat8(__half2float(v.x)) | FloatToFloat8(__half2float(v.y)) << 8);
}
inline int __float_as_int(float x) {
  int bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
template <typename T>
T __ldg(const T* from) {
  return *from;
}

// ---- Threads ------------------------------------------------------------------------------------------------------
void __syncthreads();
void __syncwarp();
uint32_t ShuffleBits(uint32_t mask, uint32_t value, int lane);  // the value of that lane of the warp
inline float __shfl_sync(uint32_t mask, float value, int lane) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits = ShuffleBits(mask, bits, lane);
  std::memcpy(&value, &bits, 4);
  return value;
}
inline float __shfl_xor_sync(uint32_t mask, float value, int step) {
  return __shfl_sync(mask, value, static_cast<int>(threadIdx.x % 32) ^ step);
}
bool __all_sync(uint32_t mask, bool value);
int atomicMax(int* place, int value);

// ---- Runtime ------------------------------------------------------------------------------------------------------
enum cudaError_t {
  cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2, cudaErrorLaunchFailure = 719,
  cudaErrorNotSupported = 801
};
const char* cudaGetErrorString(cudaError_t error);
using cudaStream_t = struct CUstream_st*;
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
cudaError_t AllocateDevice(void** to, size_t bytes);
template <typename T>
cudaError_t cudaMalloc(T** to, size_t bytes) {
  return AllocateDevice(reinterpret_cast<void**>(to), bytes);
}
cudaError_t cudaFree(void* memory);
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemset(void* to, int value, size_t bytes);  // 0xff: what no kernel may read before one has written it
cudaError_t cudaDeviceSynchronize();                        // fails where the kernels since the last call had faults
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
struct cudaDeviceProp {
  char name[256];
  int multiProcessorCount, major, minor;
};
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);

enum cudaLaunchAttributeID {
  cudaLaunchAttributeClusterDimension = 4, cudaLaunchAttributeProgrammaticStreamSerialization = 6
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  union {
    uint3 clusterDim;
    int programmaticStreamSerializationAllowed;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int bytes) {
  return bytes <= 227 * 1024 ? cudaSuccess : cudaErrorInvalidValue;
}
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, Kernel, const cudaLaunchConfig_t*) {
  return *clusters = 1, cudaSuccess;
}
cudaError_t RunGrid(const cudaLaunchConfig_t& config, const std::function<void()>& thread);
template <typename... Parameters>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Parameters... values) {
  return RunGrid(*config, [=] { kernel(values...); });
}

// ---- Tensor maps --------------------------------------------------------------------------------------------------
#define CUDART_VERSION 13000
enum { cudaEnableDefault = 0 };
enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess = 0 };
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** entry, unsigned version, unsigned long long flags,
                                             cudaDriverEntryPointQueryResult* found);
using cuuint32_t = uint32_t;
using cuuint64_t = uint64_t;
enum CUresult { CUDA_SUCCESS = 0, CUDA_ERROR_INVALID_VALUE = 1 };
enum CUtensorMapDataType {
  CU_TENSOR_MAP_DATA_TYPE_UINT8 = 0, CU_TENSOR_MAP_DATA_TYPE_FLOAT16 = 6, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 = 9
};
enum CUtensorMapInterleave { CU_TENSOR_MAP_INTERLEAVE_NONE = 0 };
enum CUtensorMapSwizzle {
  CU_TENSOR_MAP_SWIZZLE_NONE = 0, CU_TENSOR_MAP_SWIZZLE_32B = 1, CU_TENSOR_MAP_SWIZZLE_64B = 2,
  CU_TENSOR_MAP_SWIZZLE_128B = 3
};
enum CUtensorMapL2promotion { CU_TENSOR_MAP_L2_PROMOTION_L2_256B = 3 };
enum CUtensorMapFloatOOBfill { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE = 0 };
struct alignas(64) CUtensorMap {
  uint8_t* data;
  int64_t rows, row_bytes, pitch;  // pitch: bytes from a row to the next
  int box_rows, box_bytes, value_bytes, swizzle;  // swizzle: the bits of 128 bytes' number that 16 bytes' take
};

#endif  // FTBERT_TESTS_CUDA_EMULATION_CUDA_RUNTIME_H_
