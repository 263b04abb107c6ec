// The part of TensorFlow's C kernel API that the adapter calls, as pointers that are looked up at load in the
// libtensorflow_framework.so.2 that the process already has. Declared here from TensorFlow's documented C interface
// (tensorflow/c/{ops,kernels,tf_tensor,tf_status}.h), which keeps its ABI from release to release: so the build needs
// no TensorFlow, and one binary serves TensorFlow 2 whatever its version and compiler.
#ifndef FTBERT_TENSORFLOW_TF2_API_H_
#define FTBERT_TENSORFLOW_TF2_API_H_

#include <cstddef>
#include <cstdint>
#include <string>

extern "C" {
typedef struct TF_Status TF_Status;
typedef struct TF_Tensor TF_Tensor;
typedef struct TF_OpDefinitionBuilder TF_OpDefinitionBuilder;
typedef struct TF_ShapeInferenceContext TF_ShapeInferenceContext;
typedef struct TF_ShapeHandle TF_ShapeHandle;
typedef struct TF_KernelBuilder TF_KernelBuilder;
typedef struct TF_OpKernelConstruction TF_OpKernelConstruction;
typedef struct TF_OpKernelContext TF_OpKernelContext;
typedef int TF_Code;      // an enum there
typedef int TF_DataType;  // likewise
typedef unsigned char TF_Bool;
}

namespace ftbert_op {

constexpr TF_DataType kTfFloat = 1;
constexpr TF_DataType kTfInt32 = 3;

// F(return type, name, arguments)
#define FTBERT_TF2_FUNCTIONS(F)                                                                                        \
  F(TF_Status*, TF_NewStatus, (void))                                                                                  \
  F(void, TF_DeleteStatus, (TF_Status*))                                                                               \
  F(void, TF_SetStatus, (TF_Status*, TF_Code, const char*))                                                            \
  F(TF_Code, TF_GetCode, (const TF_Status*))                                                                           \
  F(void, TF_DeleteTensor, (TF_Tensor*))                                                                               \
  F(int, TF_NumDims, (const TF_Tensor*))                                                                               \
  F(int64_t, TF_Dim, (const TF_Tensor*, int))                                                                          \
  F(void*, TF_TensorData, (const TF_Tensor*))                                                                          \
  F(TF_OpDefinitionBuilder*, TF_NewOpDefinitionBuilder, (const char*))                                                 \
  F(void, TF_OpDefinitionBuilderAddAttr, (TF_OpDefinitionBuilder*, const char*))                                       \
  F(void, TF_OpDefinitionBuilderAddInput, (TF_OpDefinitionBuilder*, const char*))                                      \
  F(void, TF_OpDefinitionBuilderAddOutput, (TF_OpDefinitionBuilder*, const char*))                                     \
  F(void, TF_OpDefinitionBuilderSetIsStateful, (TF_OpDefinitionBuilder*, bool))                                        \
  F(void, TF_OpDefinitionBuilderSetShapeInferenceFunction,                                                             \
    (TF_OpDefinitionBuilder*, void (*)(TF_ShapeInferenceContext*, TF_Status*)))                                        \
  F(void, TF_RegisterOpDefinition, (TF_OpDefinitionBuilder*, TF_Status*))                                              \
  F(TF_ShapeHandle*, TF_NewShapeHandle, (void))                                                                        \
  F(void, TF_DeleteShapeHandle, (TF_ShapeHandle*))                                                                     \
  F(void, TF_ShapeInferenceContextGetInput, (TF_ShapeInferenceContext*, int, TF_ShapeHandle*, TF_Status*))             \
  F(void, TF_ShapeInferenceContextSetOutput, (TF_ShapeInferenceContext*, int, TF_ShapeHandle*, TF_Status*))            \
  F(void, TF_ShapeInferenceContextWithRank,                                                                            \
    (TF_ShapeInferenceContext*, TF_ShapeHandle*, int64_t, TF_ShapeHandle*, TF_Status*))                                \
  F(TF_ShapeHandle*, TF_ShapeInferenceContextVectorFromSize, (TF_ShapeInferenceContext*, size_t))                      \
  F(void, TF_ShapeInferenceContextConcatenateShapes,                                                                   \
    (TF_ShapeInferenceContext*, TF_ShapeHandle*, TF_ShapeHandle*, TF_ShapeHandle*, TF_Status*))                        \
  F(TF_KernelBuilder*, TF_NewKernelBuilder,                                                                            \
    (const char*, const char*, void* (*)(TF_OpKernelConstruction*), void (*)(void*, TF_OpKernelContext*),              \
     void (*)(void*)))                                                                                                 \
  F(void, TF_RegisterKernelBuilder, (const char*, TF_KernelBuilder*, TF_Status*))                                      \
  F(int, TF_NumInputs, (TF_OpKernelContext*))                                                                          \
  F(void, TF_GetInput, (TF_OpKernelContext*, int, TF_Tensor**, TF_Status*))                                            \
  F(TF_Tensor*, TF_AllocateOutput,                                                                                     \
    (TF_OpKernelContext*, int, TF_DataType, const int64_t*, int, size_t, TF_Status*))                                  \
  F(void, TF_OpKernelConstruction_Failure, (TF_OpKernelConstruction*, TF_Status*))                                     \
  F(void, TF_OpKernelContext_Failure, (TF_OpKernelContext*, TF_Status*))                                               \
  F(void, TF_OpKernelConstruction_GetAttrSize,                                                                         \
    (TF_OpKernelConstruction*, const char*, int32_t*, int32_t*, TF_Status*))                                           \
  F(void, TF_OpKernelConstruction_GetAttrInt64, (TF_OpKernelConstruction*, const char*, int64_t*, TF_Status*))         \
  F(void, TF_OpKernelConstruction_GetAttrFloat, (TF_OpKernelConstruction*, const char*, float*, TF_Status*))           \
  F(void, TF_OpKernelConstruction_GetAttrBool, (TF_OpKernelConstruction*, const char*, TF_Bool*, TF_Status*))          \
  F(void, TF_OpKernelConstruction_GetAttrString, (TF_OpKernelConstruction*, const char*, char*, size_t, TF_Status*))   \
  F(void, TF_OpKernelConstruction_GetAttrStringList,                                                                   \
    (TF_OpKernelConstruction*, const char*, char**, size_t*, int, void*, size_t, TF_Status*))

struct Tf2Api {
#define FTBERT_TF2_DECLARE(result, name, arguments) result(*name) arguments = nullptr;
  FTBERT_TF2_FUNCTIONS(FTBERT_TF2_DECLARE)
#undef FTBERT_TF2_DECLARE
};

// Looks every function up once. Returns null, with the reason and the remedy in *problem, where there is no TensorFlow
// 2.
const Tf2Api* LoadTf2Api(std::string* problem);

}  // namespace ftbert_op

#endif  // FTBERT_TENSORFLOW_TF2_API_H_
