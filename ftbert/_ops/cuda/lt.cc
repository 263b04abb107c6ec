// Declares the dozen functions and constants of cuBLASLt that are used; where its header is found at build, the
// compiler checks them against it.
#include "cuda/lt.h"

#include <dlfcn.h>
#include <library_types.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#if __has_include(<cublasLt.h>)
#include <cublasLt.h>
#define FTBERT_HAVE_LT_HEADER 1
#endif


namespace ftbert {
namespace cuda {
namespace {

constexpr int kNotSupported = 15;  // a status
constexpr int kOpTranspose = 1, kCompute32F = 68;
constexpr int kDescTransA = 3, kDescEpilogue = 7, kDescBiasPointer = 8, kLayoutColumns = 3;
constexpr int kPreferenceWorkspace = 1, kPreferenceAlignmentA = 5;  // B, C and D: 6, 7 and 8
constexpr int kEpilogueBias = 4, kEpilogueReluBias = 6, kEpilogueGeluBias = 36;

struct Algorithm {
  uint64_t data[8];
};
struct Heuristic {
  Algorithm algorithm;
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};

#ifdef FTBERT_HAVE_LT_HEADER
static_assert(kOpTranspose == CUBLAS_OP_T && kCompute32F == CUBLAS_COMPUTE_32F, "cuBLAS has other numbers");
static_assert(kDescTransA == CUBLASLT_MATMUL_DESC_TRANSA && kDescEpilogue == CUBLASLT_MATMUL_DESC_EPILOGUE &&
                  kDescBiasPointer == CUBLASLT_MATMUL_DESC_BIAS_POINTER &&
                  kLayoutColumns == CUBLASLT_MATRIX_LAYOUT_COLS &&
                  kPreferenceWorkspace == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES &&
                  kPreferenceAlignmentA == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES &&
                  kPreferenceAlignmentA + 3 == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES &&
                  kNotSupported == CUBLAS_STATUS_NOT_SUPPORTED,
              "cuBLASLt has other numbers");
static_assert(kEpilogueBias == CUBLASLT_EPILOGUE_BIAS && kEpilogueReluBias == CUBLASLT_EPILOGUE_RELU_BIAS &&
                  kEpilogueGeluBias == CUBLASLT_EPILOGUE_GELU_BIAS,
              "cuBLASLt has other numbers");
static_assert(sizeof(Heuristic) == sizeof(cublasLtMatmulHeuristicResult_t) &&
                  sizeof(Algorithm) == sizeof(cublasLtMatmulAlgo_t),
              "cuBLASLt has other structures");
#endif

struct Library {
  int (*create)(void**) = nullptr;
  size_t (*version)() = nullptr;
  int (*desc_create)(void**, int, int) = nullptr;
  int (*desc_set)(void*, int, const void*, size_t) = nullptr;
  int (*layout_create)(void**, int, uint64_t, uint64_t, int64_t) = nullptr;
  int (*layout_set)(void*, int, const void*, size_t) = nullptr;
  int (*preference_create)(void**) = nullptr;
  int (*preference_set)(void*, int, const void*, size_t) = nullptr;
  int (*preference_destroy)(void*) = nullptr;
  int (*heuristic)(void*, void*, void*, void*, void*, void*, void*, int, Heuristic*, int*) = nullptr;
  int (*check)(void*, void*, void*, void*, void*, void*, const Algorithm*, Heuristic*) = nullptr;
  // handle, operation, alpha, A, A's layout, B, B's layout, beta, C, C's layout, D, D's layout, algorithm, scratch, ...
  int (*matmul)(void*, void*, const void*, const void*, void*, const void*, void*, const void*, const void*, void*,
                void*, void*, const Algorithm*, void*, size_t, cudaStream_t) = nullptr;
  bool open = false;
};

void* OpenLibrary() {
  std::vector<std::string> folders;
  if (const char* hint = std::getenv("FTBERT_CUBLAS_DIR")) folders.push_back(std::string(hint) + "/");
  folders.push_back("");  // the loader's own path, or one that the process has open
  folders.push_back("/usr/local/cuda/lib64/");
  folders.push_back("/usr/local/cuda/targets/x86_64-linux/lib/");
  for (const std::string& folder : folders) {
    for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so.11"}) {
      if (void* handle = dlopen((folder + name).c_str(), RTLD_NOW | RTLD_LOCAL)) return handle;
    }
  }
  return nullptr;
}

template <typename Function>
bool Resolve(void* handle, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(handle, name));
  return *function != nullptr;
}

// Opened once and never closed.
const Library& Lt() {
  static const Library* library = [] {
    auto* l = new Library;
    void* h = OpenLibrary();
    l->open = h != nullptr && Resolve(h, "cublasLtCreate", &l->create) &&
              Resolve(h, "cublasLtGetVersion", &l->version) &&
              Resolve(h, "cublasLtMatmulDescCreate", &l->desc_create) &&
              Resolve(h, "cublasLtMatmulDescSetAttribute", &l->desc_set) &&
              Resolve(h, "cublasLtMatrixLayoutCreate", &l->layout_create) &&
              Resolve(h, "cublasLtMatrixLayoutSetAttribute", &l->layout_set) &&
              Resolve(h, "cublasLtMatmulPreferenceCreate", &l->preference_create) &&
              Resolve(h, "cublasLtMatmulPreferenceSetAttribute", &l->preference_set) &&
              Resolve(h, "cublasLtMatmulPreferenceDestroy", &l->preference_destroy) &&
              Resolve(h, "cublasLtMatmulAlgoGetHeuristic", &l->heuristic) &&
              Resolve(h, "cublasLtMatmulAlgoCheck", &l->check) && Resolve(h, "cublasLtMatmul", &l->matmul);
    return l;
  }();
  return *library;
}

constexpr size_t kMostChecked = 4096;
constexpr uint32_t kAlignment = 16;  // of every operand: rows are multiples of 16 bytes, and parts begin at one

// What the products of a class of heights need, made once and kept: descriptions, layouts, algorithms. The heuristic is
// asked for the class's own height: a choice is remembered by its place in the list, for the whole class.
struct Prepared {
  void* handle = nullptr;
  void* operation = nullptr;
  void *w = nullptr, *x = nullptr, *out = nullptr;
  std::vector<Heuristic> algorithms;
  // (choice, height): the scratch that it takes, by the library's own word; negative: it does not run.
  std::map<std::pair<int, int>, int64_t> checked;
};

// The height that the heuristic is asked for. Recorded batches below 2,048 tokens come in multiples of 32, and there a
// wave more or less is much; all else goes by classes, so that few descriptions are made.
int ListHeight(int m) { return m < 2048 && m % 32 == 0 ? m : HeightClass(m); }

int DataTypeOf(Element e) {
  return e == Element::kFloat ? CUDA_R_32F : (e == Element::kHalf ? CUDA_R_16F : CUDA_R_16BF);
}

// Every call of the library is made under one lock: nothing here depends on what it promises about threads. Bias
// pointer and height are set in shared descriptions before each launch.
class Products {
 public:
  std::mutex mutex;

  // The caller holds the lock.
  Prepared* Find(const Machine& machine, const Gemm& g) {
    const Key key(machine.device, ListHeight(g.m), g.n, g.k, static_cast<int>(g.in), g.act, g.ldx, g.ldo);
    std::unique_ptr<Prepared>& p = products_[key];
    if (!p) p = Make(machine, g);
    return p.get();
  }

 private:
  using Key = std::tuple<int, int, int, int, int, int, int64_t, int64_t>;

  // Row-major out = x w^T is column-major out^T (n, m) = w (k, n)^T x^T (k, m).
  std::unique_ptr<Prepared> Make(const Machine& machine, const Gemm& g) {
    const Library& lt = Lt();
    auto p = std::make_unique<Prepared>();
    void*& handle = handles_[machine.device];
    if (handle == nullptr && lt.create(&handle) != 0) return p;
    p->handle = handle;
    const int type = DataTypeOf(g.in), transpose = kOpTranspose;
    const Act act = static_cast<Act>(g.act);
    const int epilogue =
        act == Act::kGeluTanh ? kEpilogueGeluBias : (act == Act::kRelu ? kEpilogueReluBias : kEpilogueBias);
    const void* bias = g.in == Element::kFloat ? static_cast<const void*>(g.bias) : g.bias_half;
    void* preference = nullptr;
    const size_t scratch = kLtScratchBytes;
    bool good = lt.desc_create(&p->operation, kCompute32F, CUDA_R_32F) == 0 &&
                      lt.desc_set(p->operation, kDescTransA, &transpose, sizeof transpose) == 0 &&
                      lt.desc_set(p->operation, kDescEpilogue, &epilogue, sizeof epilogue) == 0 &&
                      lt.desc_set(p->operation, kDescBiasPointer, &bias, sizeof bias) == 0 &&
                      lt.layout_create(&p->w, type, g.k, g.n, g.k) == 0 &&
                      lt.layout_create(&p->x, type, g.k, ListHeight(g.m), g.ldx) == 0 &&
                      lt.layout_create(&p->out, type, g.n, ListHeight(g.m), g.ldo) == 0 &&
                      lt.preference_create(&preference) == 0 &&
                      lt.preference_set(preference, kPreferenceWorkspace, &scratch, sizeof scratch) == 0;
    for (int i = 0; i < 4; ++i) {  // without it the library takes 256 bytes for granted
      good = good && lt.preference_set(preference, kPreferenceAlignmentA + i, &kAlignment, sizeof kAlignment) == 0;
    }
    Heuristic found[8];
    int count = 0;
    if (good && lt.heuristic(handle, p->operation, p->w, p->x, p->out, p->out, preference, 8, found, &count) == 0) {
      for (int i = 0; i < count; ++i) {
        if (found[i].state == 0 && found[i].workspace <= scratch) p->algorithms.push_back(found[i]);
      }
    }
    if (preference != nullptr) lt.preference_destroy(preference);
    return p;
  }

  std::map<Key, std::unique_ptr<Prepared>> products_;
  std::map<int, void*> handles_;
};

Products& AllProducts() {
  static auto* products = new Products;
  return *products;
}

}  // namespace

bool LtAvailable() { return Lt().open; }

std::string LtVersion() { return LtAvailable() ? std::to_string(Lt().version()) : "none"; }

bool LtFits(const Gemm& g) {
  const Act act = static_cast<Act>(g.act);
  return g.in != Element::kFloat8 && g.in == g.out_type &&
         (g.in == Element::kFloat || g.bias_half != nullptr) &&
         (act == Act::kNone || act == Act::kRelu || (act == Act::kGeluTanh && g.in != Element::kFloat));
}

int LtChoices(const Machine& machine, const Gemm& g) {
  if (!LtFits(g) || !LtAvailable()) return 0;
  std::lock_guard<std::mutex> lock(AllProducts().mutex);
  return static_cast<int>(AllProducts().Find(machine, g)->algorithms.size());
}

cudaError_t RunLt(const Machine& machine, int choice, const Gemm& g, cudaStream_t stream) {
  if (!LtFits(g) || !LtAvailable() || g.scratch_bytes < kLtScratchBytes || g.residual != nullptr) {
    return cudaErrorNotSupported;
  }
  const Library& lt = Lt();
  const float one = 1.f, zero = 0.f;
  const void* bias = g.in == Element::kFloat ? static_cast<const void*>(g.bias) : g.bias_half;
  const uint64_t height = g.m;
  std::lock_guard<std::mutex> lock(AllProducts().mutex);
  Prepared* p = AllProducts().Find(machine, g);
  if (choice >= static_cast<int>(p->algorithms.size())) return cudaErrorNotSupported;
  if (lt.desc_set(p->operation, kDescBiasPointer, &bias, sizeof bias) != 0 ||
      lt.layout_set(p->x, kLayoutColumns, &height, sizeof height) != 0 ||
      lt.layout_set(p->out, kLayoutColumns, &height, sizeof height) != 0) {
    return cudaErrorUnknown;
  }
  // The list was made for the class's height; whether the algorithm takes this one is for the library to say.
  const Algorithm* algorithm = &p->algorithms[choice].algorithm;
  if (p->checked.size() >= kMostChecked) p->checked.clear();
  const auto known = p->checked.emplace(std::make_pair(choice, g.m), -1);
  if (known.second) {
    Heuristic need = {};
    if (lt.check(p->handle, p->operation, p->w, p->x, p->out, p->out, algorithm, &need) == 0 &&
        need.workspace <= static_cast<size_t>(kLtScratchBytes)) {
      known.first->second = static_cast<int64_t>(need.workspace);
    }
  }
  if (known.first->second < 0) return cudaErrorNotSupported;
  const bool counts = g.counter != nullptr && known.first->second <= kLtCounterBytes;
  const int status = lt.matmul(p->handle, p->operation, &one, g.w, p->w, g.x, p->x, &zero, g.out, p->out, g.out, p->out,
                               algorithm, counts ? g.counter : g.scratch, counts ? kLtCounterBytes : kLtScratchBytes,
                               stream);
  if (status == kNotSupported) return cudaErrorNotSupported;
  return status == 0 ? cudaSuccess : cudaErrorUnknown;
}

}  // namespace cuda
}  // namespace ftbert
