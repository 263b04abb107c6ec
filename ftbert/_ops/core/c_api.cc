// The C ABI over engine.h, and the registry that turns engines into ids.
#include "ftbert/c_api.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "ftbert/engine.h"

struct ftbert_builder {
  std::unique_ptr<ftbert::Builder> builder;
};

namespace {

using ftbert::Code;
using ftbert::Status;

struct Registry {
  std::mutex mutex;
  std::map<int64_t, std::shared_ptr<ftbert::Engine>> engines;
  int64_t next = 1;
};

// Never destroyed: a caller's thread may still be running while the process's statics go.
Registry& Engines() {
  static Registry* registry = new Registry;
  return *registry;
}

std::shared_ptr<ftbert::Engine> Find(int64_t id) {
  Registry& registry = Engines();
  std::lock_guard<std::mutex> lock(registry.mutex);
  const auto found = registry.engines.find(id);
  return found == registry.engines.end() ? nullptr : found->second;
}

int Report(const Status& status, char* error, size_t error_size) {
  if (error != nullptr && error_size > 0) {
    const size_t length = std::min(status.message().size(), error_size - 1);
    std::memcpy(error, status.message().data(), length);
    error[length] = '\0';
  }
  return static_cast<int>(status.code());
}

Status Unknown(int64_t id) {
  return Status(Code::kInvalidArgument, "Engine " + std::to_string(id) +
                                            " is not loaded in this process. It was closed, or belongs to the process "
                                            "that this one was forked from.");
}

int64_t Write(const std::string& text, char* to, size_t size) {
  if (to != nullptr && size > 0) {
    const size_t length = std::min(text.size(), size - 1);
    std::memcpy(to, text.data(), length);
    to[length] = '\0';
  }
  return static_cast<int64_t>(text.size());
}

// No exception crosses the border.
template <typename Body>
Status Guard(const Body& body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return Status(Code::kOutOfMemory, "Out of memory on the host.");
  } catch (const std::exception& error) {
    return Status(Code::kInternal, std::string("Unexpected failure: ") + error.what());
  }
}

}  // namespace

extern "C" {

int32_t ftbert_abi_version(void) { return FTBERT_ABI_VERSION; }

int ftbert_builder_create(const ftbert_config* config, const char* device, int32_t precision, int32_t threads,
                          ftbert_builder** builder, char* error, size_t error_size) {
  const Status status = Guard([&] {
    if (config == nullptr || device == nullptr || builder == nullptr) {
      return Status(Code::kInvalidArgument, "Expected a config, a device and a place for the builder, got null.");
    }
    ftbert::Config c;
    c.vocab_size = config->vocab_size;
    c.hidden_size = config->hidden_size;
    c.num_layers = config->num_layers;
    c.num_heads = config->num_heads;
    c.intermediate_size = config->intermediate_size;
    c.max_positions = config->max_positions;
    c.type_vocab_size = config->type_vocab_size;
    c.num_labels = config->num_labels;
    c.has_pooler = config->has_pooler;
    c.activation = static_cast<ftbert::Activation>(config->activation);
    c.norm_epsilon = config->norm_epsilon;
    ftbert::Options options;
    options.device = device;
    options.precision = static_cast<ftbert::Precision>(precision);
    options.threads = threads;
    std::unique_ptr<ftbert_builder> made(new ftbert_builder);
    const Status created = ftbert::Builder::Create(c, options, &made->builder);
    if (created.ok()) *builder = made.release();
    return created;
  });
  return Report(status, error, error_size);
}

int ftbert_builder_add(ftbert_builder* builder, const char* name, int32_t type, int32_t rank, const int64_t* shape,
                       const void* data, int32_t transposed, char* error, size_t error_size) {
  const Status status = Guard([&] {
    if (builder == nullptr || name == nullptr || rank < 0 || (rank > 0 && shape == nullptr) || type < 0 || type > 2) {
      return Status(Code::kInvalidArgument, "Expected a builder, a name, a shape and a type of 0 to 2.");
    }
    ftbert::Array array;
    array.name = name;
    array.type = static_cast<ftbert::DataType>(type);
    array.shape.assign(shape, shape + rank);
    array.data = data;
    array.transposed = transposed != 0;
    return builder->builder->AddWeight(array);
  });
  return Report(status, error, error_size);
}

int ftbert_builder_finish(ftbert_builder* builder, int64_t* engine, char* error, size_t error_size) {
  const std::unique_ptr<ftbert_builder> owned(builder);
  const Status status = Guard([&] {
    if (builder == nullptr || engine == nullptr) {
      return Status(Code::kInvalidArgument, "Expected a builder and a place for the engine, got null.");
    }
    std::shared_ptr<ftbert::Engine> made;
    const Status finished = builder->builder->Finish(&made);
    if (finished.ok()) {
      Registry& registry = Engines();
      std::lock_guard<std::mutex> lock(registry.mutex);
      *engine = registry.next++;
      registry.engines[*engine] = std::move(made);
    }
    return finished;
  });
  return Report(status, error, error_size);
}

void ftbert_builder_free(ftbert_builder* builder) { delete builder; }

int ftbert_engine_release(int64_t engine, char* error, size_t error_size) {
  std::shared_ptr<ftbert::Engine> last;  // dropped outside the lock: freeing an engine can take a while
  {
    Registry& registry = Engines();
    std::lock_guard<std::mutex> lock(registry.mutex);
    const auto found = registry.engines.find(engine);
    if (found != registry.engines.end()) {
      last = std::move(found->second);
      registry.engines.erase(found);
    }
  }
  return Report(last ? Status() : Unknown(engine), error, error_size);
}

int ftbert_engine_config(int64_t engine, ftbert_config* config, char* error, size_t error_size) {
  const std::shared_ptr<ftbert::Engine> held = Find(engine);
  if (!held) return Report(Unknown(engine), error, error_size);
  if (config == nullptr) {
    return Report(Status(Code::kInvalidArgument, "Expected a place for the config, got null."), error, error_size);
  }
  const ftbert::Config& c = held->config();
  config->vocab_size = c.vocab_size;
  config->hidden_size = c.hidden_size;
  config->num_layers = c.num_layers;
  config->num_heads = c.num_heads;
  config->intermediate_size = c.intermediate_size;
  config->max_positions = c.max_positions;
  config->type_vocab_size = c.type_vocab_size;
  config->num_labels = c.num_labels;
  config->has_pooler = c.has_pooler;
  config->activation = static_cast<int32_t>(c.activation);
  config->norm_epsilon = c.norm_epsilon;
  return 0;
}

int ftbert_run(int64_t engine, const int32_t* token_ids, const int32_t* segment_ids, const int32_t* row_splits,
               int32_t num_rows, const ftbert_outputs* outputs, char* error, size_t error_size) {
  const Status status = Guard([&] {
    const std::shared_ptr<ftbert::Engine> held = Find(engine);
    if (!held) return Unknown(engine);
    if (outputs == nullptr) return Status(Code::kInvalidArgument, "Expected outputs, got null.");
    ftbert::Batch batch;
    batch.token_ids = token_ids;
    batch.segment_ids = segment_ids;
    batch.row_splits = row_splits;
    batch.num_rows = num_rows;
    ftbert::Outputs out;
    out.logits = outputs->logits;
    out.pooled = outputs->pooled;
    out.first_states = outputs->first_states;
    out.token_states = outputs->token_states;
    return held->Run(batch, out);
  });
  return Report(status, error, error_size);
}

int ftbert_tune(int64_t engine, const int32_t* token_counts, int32_t count, char* error, size_t error_size) {
  const Status status = Guard([&] {
    const std::shared_ptr<ftbert::Engine> held = Find(engine);
    if (!held) return Unknown(engine);
    if (count < 0 || (count > 0 && token_counts == nullptr)) {
      return Status(Code::kInvalidArgument, "Expected a list of token counts.");
    }
    return held->Tune(std::vector<int32_t>(token_counts, token_counts + count));
  });
  return Report(status, error, error_size);
}

int ftbert_warm(int64_t engine, int32_t most_tokens, int32_t at_once, char* error, size_t error_size) {
  const Status status = Guard([&] {
    const std::shared_ptr<ftbert::Engine> held = Find(engine);
    return held ? held->Warm(most_tokens, at_once) : Unknown(engine);
  });
  return Report(status, error, error_size);
}

int64_t ftbert_describe(int64_t engine, char* json, size_t size) {
  const std::shared_ptr<ftbert::Engine> held = Find(engine);
  return held ? Write(held->Describe(), json, size) : -1;
}

int64_t ftbert_describe_machine(char* json, size_t size) { return Write(ftbert::DescribeMachine(), json, size); }

}  // extern "C"
