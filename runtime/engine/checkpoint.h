// What a job has reached, as it is kept while it does not run: put aside, or lost with its server.
#ifndef DENOISED_RUNTIME_ENGINE_CHECKPOINT_H_
#define DENOISED_RUNTIME_ENGINE_CHECKPOINT_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime/job.h"
#include "runtime/selection_policy.h"

namespace denoised {

// Plain value. Without `run` there is nothing to go on from.
struct Checkpoint {
  int64_t step = 0;  // steps done
  // What must be the same where it goes on, for the same bits: named, one "name=value" a line.
  std::string identity;
  std::vector<ReceiptEntry> entries;  // of the steps done
  std::vector<std::string> notes;
  std::string run;  // GenerationRun::Save
  // That a pinned job is held to (AttentionPlanner::pinned); null where it is not pinned.
  std::shared_ptr<const LeaseList> pinned = nullptr;
  std::string order = {};  // AutomaticOrder::Save

  std::string Serialise() const;
  // "" gives an empty one. Throws DATA_LOSS where it was not made by Serialise or is damaged.
  static Checkpoint Parse(const std::string& bytes);
};

// For people: the names whose values differ, both values each.
std::string WhatDiffers(const std::string& before, const std::string& now);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ENGINE_CHECKPOINT_H_
