// Where services get the engine from. The ports are open before it exists: until it does, whoever
// asks is refused, and nobody holds a pointer to something half made.
#ifndef DENOISED_SERVER_ENGINE_GATE_H_
#define DENOISED_SERVER_ENGINE_GATE_H_

#include <atomic>

#include "runtime/engine.h"

namespace denoised {

class EngineGate {
 public:
  // Lets everybody through to `engine`, which is borrowed and outlives all who ask. Once.
  void Open(Engine* engine) { engine_.store(engine, std::memory_order_release); }

  // Any thread. Null while models load.
  Engine* engine() const { return engine_.load(std::memory_order_acquire); }

  // The same for calls: throws UNAVAILABLE (reason LOADING, with a time to retry) meanwhile.
  Engine& Require() const {
    Engine* const engine = this->engine();
    if (engine != nullptr) return *engine;
    throw Error(StatusCode::kUnavailable, "the server is loading its models", "", "LOADING")
        .RetryAfter(std::chrono::seconds(2));
  }

 private:
  std::atomic<Engine*> engine_{nullptr};
};

}  // namespace denoised

#endif  // DENOISED_SERVER_ENGINE_GATE_H_
