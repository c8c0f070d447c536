// An engine over a repository and a state folder.
#include <algorithm>
#include <utility>

#include "backends/intra_op.h"
#include "runtime/engine/engine_impl.h"
#include "runtime/threads.h"

namespace denoised {
namespace {

std::unique_ptr<JobStore> OpenStore(const EngineOptions& options, Logger* logger) {
  const auto finished = static_cast<size_t>(options.max_finished_jobs);
  const auto bytes = static_cast<size_t>(options.max_artifact_bytes);
  if (options.state_dir.empty()) return MakeMemoryJobStore(finished, bytes);
  StoreOptions store;
  store.state_dir = options.state_dir;
  store.max_finished = finished;
  store.max_row_bytes = MostRowBytes(options.max_memory);
  store.max_artifact_bytes = bytes;
  store.keep_results = options.keep_results;
  return OpenJobStore(store, logger);
}

}  // namespace

std::unique_ptr<Engine> Engine::Create(const EngineOptions& options, Observer* observer,
                                       Logger* logger) {
  auto store = OpenStore(options, logger);  // first: a folder in use is found before any load
  auto policy = std::make_unique<SelectionPolicy>(options.environment_backend);
  LoadedRepository loaded;
  // Of this thread too: what a measurement says of the machine names the number.
  SetIntraOpThreads(options.threads);
  // Half of them: files are hashed beside it, and helpers that wait for work would hold the hashers
  // up.
  RunOnPassingThread(std::max(1, IntraOpThreads() / 2), [&] {
    loaded = LoadPipelines(
        {options.model_repository, options.device, options.dtype, options.admit_unmeasured,
         options.variant, options.strict_repository, options.state_dir, options.linear,
         options.vae_dtype, options.keep_text_encoder},
        policy.get(), observer, logger);
  });
  return std::make_unique<EngineImpl>(options, std::move(policy), std::move(loaded),
                                      std::move(store), observer, logger);
}

}  // namespace denoised
