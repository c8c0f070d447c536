// The measured automatic choice: which backends automatic selection tries first, and for how long
// a piece of work is held to that. Torch-free.
//
// A row says how fast a backend is for a kind of call on this machine, and how far from the
// reference. Of those that may be chosen, the fastest is: of the registry's automatic backends,
// and with `auto_error` also of any other whose measured error is at most that. Where nothing was
// measured for a kind of call, the registry's order stands.
//
// A backend is a part of a result's bits. So a change of the table is not for work that has begun:
// each keeps the answers that it got (AutomaticOrder), over a restart too, and only what begins
// later asks anew. The policy's version does not move.
#ifndef DENOISED_RUNTIME_ATTENTION_MEASUREMENTS_H_
#define DENOISED_RUNTIME_ATTENTION_MEASUREMENTS_H_

#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "backends/registry.h"
#include "backends/selector.h"
#include "runtime/measured_table.h"

namespace denoised {

// A kind of call that somebody wants measured.
struct MeasureShape {
  AttentionSpec spec;
  int64_t rows = 1;  // batch rows
};

// What automatic selection tries before the registry's order for a kind of call.
struct MeasuredOrder {
  std::vector<MeasuredRow> fastest_first;  // empty where nothing was measured
  std::chrono::system_clock::time_point measured_at;

  // With what selections and receipts say of each: "0.00021 s a call, error 1.6e-07, for ...".
  std::vector<PreferredBackend> For(const MeasuredKey& key) const;
};

// The table of one engine, and what it means here. Any thread.
class Measurements {
 public:
  // Before anybody asks; until then there is no row.
  void Open(MeasuredOn here, std::optional<double> auto_error, MeasuredTable table);

  // By what is in the table now.
  MeasuredOrder OrderOf(const MeasuredKey& key, const BackendRegistry& registry) const;
  // About measurements of such a call that do not count here, a sentence; "" = there are none.
  std::string WhyIgnored(const MeasuredKey& key) const;

  // In place of what this machine had for the key; the machine and the time are filled in.
  void Put(MeasuredGroup group);
  // What another server exported. Of one key and machine the later measurement stays.
  struct Taken {
    int64_t groups = 0, ignored = 0;  // of them: not of this version, device and instruction set
    std::string why_ignored;          // a sentence; "" = none is
  };
  Taken Take(const MeasuredTable& table);
  MeasuredTable table() const;
  // Of the rows that are there: as Take says it.
  Taken Ignored() const;

  // Notes a kind of call that work was given the registry's order for. Each key once.
  void NoteMissing(const MeasureShape& shape);
  // What was noted and has not been measured since, and forgets it.
  std::optional<MeasureShape> TakeMissing();
  bool HasMissing() const;

 private:
  static constexpr size_t kMaxNoted = 256;  // keys, in the life of a process

  mutable std::mutex mutex_;  // guards all below
  MeasuredOn here_;
  std::optional<double> auto_error_;
  MeasuredTable table_;
  std::set<MeasuredKey> noted_;
  std::vector<MeasureShape> missing_;
};

// What automatic selection tries first for one piece of work: what the table said when the work
// first asked for a kind of call, to its end. Any thread: who explains the work asks too.
class AutomaticOrder {
 public:
  MeasuredOrder Of(const AttentionSpec& spec, int64_t rows, Measurements& measurements,
                   const BackendRegistry& registry);

  // For a checkpoint, and from one; "" = nothing was asked. What cannot be read is not restored:
  // then the table is asked again.
  std::string Save() const;
  void Restore(const std::string& saved);

 private:
  mutable std::mutex mutex_;
  std::map<std::string, MeasuredOrder> by_key_;  // ToText of the key; guarded by mutex_
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ATTENTION_MEASUREMENTS_H_
