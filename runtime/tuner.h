// The operator's side of the measured automatic choice: having backends measured, and carrying what
// was measured from one server to another. Torch-free face; a part of the engine.
#ifndef DENOISED_RUNTIME_TUNER_H_
#define DENOISED_RUNTIME_TUNER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backends/attn_backend.h"
#include "backends/error.h"

namespace denoised {

struct CancelToken;

// What to measure: self- and cross-attention of models.
struct TuneQuery {
  std::string model = {};             // "" = all
  std::vector<int64_t> lengths = {};  // tokens of the video; empty = the model's default size
  std::vector<int64_t> rows = {};     // batch rows; empty = 1 and 2: without and with guidance
  std::string who = {};               // for the audit

  static constexpr size_t kMaxLengths = 32, kMaxRows = 8;
  static constexpr int64_t kLongest = 1 << 17, kMostRows = 16;
};

// One measurement, made or not.
struct TuneProgress {
  std::string key;  // of what kind of call, for people
  AttnBackend backend = AttnBackend::kReference;
  std::optional<double> seconds, relative_l2;
  std::string why_not;  // where there are none
  int64_t done = 0, total = 0;
};

struct ImportedMeasurements {
  int64_t taken = 0;    // groups of measurements
  int64_t ignored = 0;  // of them: kept, but not for this version, device and instruction set
  std::string note;     // why; "" where none is
};

// Any thread.
class Tuner {
 public:
  virtual ~Tuner() = default;

  // Measures every backend that the layers list and this machine has, a call at a time on the
  // engine's thread: at once where there is nothing else to do, and a fifth of the time where there
  // is. A kind of call counts as soon as all its backends are measured, and the audit says so; work
  // that has begun keeps its choice. Several tunes are served one after the other. `progress` runs
  // on the engine's thread and must not block; `done` runs exactly once: without an error, with
  // NOT_FOUND (model), INVALID_ARGUMENT ("lengths", "rows": also where they are more kinds of calls
  // than are kept), CANCELLED (by the token) or UNAVAILABLE (the engine drains).
  virtual void Tune(TuneQuery query, std::shared_ptr<CancelToken> cancel,
                    std::function<void(const TuneProgress&)> progress,
                    std::function<void(std::optional<Error>)> done) = 0;

  // Everything that is known, of other machines too, as JSON.
  virtual std::string Export() const = 0;
  // Takes what another server exported; of one kind of call and machine the later measurement
  // stays. `who` is for the audit. Throws INVALID_ARGUMENT naming the place ("json:
  // groups[3].key.rows: ..."): then nothing was taken.
  virtual ImportedMeasurements Import(const std::string& json, const std::string& who) = 0;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_TUNER_H_
