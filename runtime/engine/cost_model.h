// How long a unit of work takes, learnt from those that ran. Torch-free; any thread.
//
// A key's times are kept by the number of rows, each as the middle half's mean of its last ones, so
// that a stall of the machine or a cold first call does not move it. A shape that never ran is
// predicted from the shapes of the same kind that did, by non-negative least squares over what a
// transformer's time is made of: a call, rows, multiply-adds, tokens and tokens squared.
#ifndef DENOISED_RUNTIME_ENGINE_COST_MODEL_H_
#define DENOISED_RUNTIME_ENGINE_COST_MODEL_H_

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "runtime/engine/cost_law.h"
#include "runtime/engine/unit_times.h"

namespace denoised {

// What a unit is. Times are kept for model, kind, group and backend; the two sizes, those of one
// row, say what a group that never ran is like.
struct UnitKey {
  std::string model, kind, group, backend;
  double multiply_adds = 0, tokens = 0;
};

class CostModel {
 public:
  // At most so many keys: those used least lately are forgotten.
  explicit CostModel(size_t max_keys = 1024) : max_keys_(max_keys) {}

  // A forward of so many rows took so long. Times that are not positive and finite are ignored.
  void Observe(const UnitKey& key, int64_t rows, double seconds);

  // Predicted seconds of one unit with so many rows. Where nothing of the kind ever ran, a guess.
  double Seconds(const UnitKey& key, int64_t rows) const;
  // Whether Seconds() rests on measured times, of this key or of others of its kind.
  bool known(const UnitKey& key) const;
  // Whether this key itself was observed, and not by an earlier process alone, whose device,
  // threads and machine may have been others.
  bool ran_here(const UnitKey& key) const;

  // How many rows a forward may take, 1 to `most`, without loss: more as long as a further row adds
  // no more, but for noise, than what each takes without it. Where nothing of a call's time is
  // shared rows neither gain nor lose: that nobody is delayed who must not be is the queue's
  // business. What was never tried is tried, twice as many each time.
  int64_t WorthRows(const UnitKey& key, int64_t most) const;

  // Everything learnt, as JSON, to be kept beside the jobs.
  std::string Save() const;
  // Takes what Save wrote, beside what is known already. Returns why it ignored some of it or all;
  // empty where it took everything. Never throws: a server without it learns anew.
  std::optional<std::string> Load(const std::string& json);

  size_t size() const;

  // What has come since the beginning, Load() included: times, and those among them that were the
  // first of their key and number of rows.
  struct Learnt {
    uint64_t times = 0, firsts = 0;
    bool operator==(const Learnt&) const = default;
  };
  Learnt learnt() const;

 private:
  struct Entry {
    UnitKey key;
    UnitTimes times;
    uint64_t used = 0;  // when, in observations of the model
    bool here = false;  // by Observe
  };
  static std::string NameOf(const UnitKey& key);
  Entry& EntryOf(const UnitKey& key);
  void Add(Entry* entry, int64_t rows, double seconds);
  void ForgetOldest();
  const CostLaw* LawFor(const UnitKey& key) const;
  void MakeLaws() const;

  const size_t max_keys_;
  mutable std::mutex mutex_;
  std::map<std::string, Entry> entries_;
  uint64_t observations_ = 0;
  Learnt learnt_;
  // By kind, and kind, model and backend; made when they are asked for.
  mutable std::map<std::string, CostLaw> laws_;
  mutable uint64_t laws_made_ = 0;  // when; 0: a key came since
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ENGINE_COST_MODEL_H_
