#include "tests/runtime/store_client.h"

#include <sqlite3.h>

#include <algorithm>
#include <utility>

#include "runtime/caught.h"
#include "runtime/loaders/sha256.h"
#include "tests/runtime/store_harness.h"

namespace denoised {
namespace {

std::string IdOf(int job) { return "job" + std::to_string(job); }

std::string BytesOf(std::mt19937& random) {
  std::string bytes(1 + random() % 20000, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

// Some with a tensor, so that rows are longer than pages.
GenerationRequest RequestOf(int job) {
  GenerationRequest request = NewRequest("prompt " + std::to_string(job));
  request.idempotency_key = "key " + std::to_string(job);
  if (job % 4 != 0) return request;
  const int64_t count = 500 * (1 + job % 7);
  request.latents =
      HostTensor{DType::kFloat32, {count}, std::string(4 * static_cast<size_t>(count), 'x')};
  return request;
}

std::string CheckpointAt(int64_t step) { return std::string(5000, static_cast<char>(step)); }

}  // namespace

void StoreClient::Work(int verbs) {
  store_->Recover();
  for (int i = 0; i < verbs; ++i) {
    const int jobs = log_->jobs;
    if (jobs == 0 || random_() % 3 == 0) {
      Add();
    } else {
      Advance(jobs - 1 - static_cast<int>(random_() % std::min(jobs, 8)));
    }
  }
}

void StoreClient::Add() {
  if (log_->jobs == ToldLog::kMostJobs) return;
  const int job = log_->jobs;
  log_->told[job].phase = Told::kAsked;
  log_->jobs = job + 1;
  store_->Add(NewJob(IdOf(job)), RequestOf(job));
  log_->told[job].phase = Told::kAdded;
}

void StoreClient::Advance(int job) {
  Told& told = log_->told[job];
  const std::string id = IdOf(job);
  const auto now = store_->Get(id);
  if (told.phase == Told::kEnded && random_() % 4 == 0) Delete(&told, id);
  if (!now || IsTerminal(now->state) || told.phase != Told::kAdded) return;
  if (now->state != JobState::kRunning) {
    ++told.starts_asked;
    store_->Start(id);
    ++told.starts;
    return;
  }
  switch (random_() % 4) {
    case 0:
      store_->Update(id, [](JobSnapshot& snapshot) { ++snapshot.step; });
      break;
    case 1:
      Checkpoint(&told, id);
      break;
    default:
      End(&told, id);
  }
}

void StoreClient::Delete(Told* told, const std::string& id) {
  told->phase = Told::kDeleting;
  store_->Delete(id);
  told->phase = Told::kDeleted;
}

void StoreClient::Checkpoint(Told* told, const std::string& id) {
  const int step = told->checkpoint + 1;
  store_->Checkpoint(id, step, CheckpointAt(step));
  store_->Interrupt(id);
  told->checkpoint = step;
}

void StoreClient::End(Told* told, const std::string& id) {
  const JobState end = random_() % 2 == 0 ? JobState::kSucceeded : JobState::kFailed;
  told->end = static_cast<uint8_t>(end);
  std::vector<ArtifactInfo> artifacts;
  if (end == JobState::kSucceeded) {
    const std::string bytes = BytesOf(random_), digest = Sha256Hex(bytes);
    std::copy(digest.begin(), digest.end(), told->sha256);
    artifacts = {{ArtifactFormat::kMp4, "video.mp4", bytes.size(), digest}};
    store_->PutArtifact(id, artifacts[0], bytes);
  }
  told->phase = Told::kEnding;
  store_->Update(id, [&](JobSnapshot& job) {
    job.state = end;
    job.artifacts = artifacts;
    job.finished_at = std::chrono::system_clock::now();
  });
  // Seen once it is kept.
  if (IsTerminal(store_->Get(id)->state)) told->phase = Told::kEnded;
}

std::vector<std::string> StoreChecker::Violations() {
  violations_.clear();
  if (const auto error = Caught([this] { CheckStore(); })) {
    violations_.push_back(std::string("the store does not open: ") + error->what());
  }
  CheckIntegrity();
  return violations_;
}

void StoreChecker::CheckStore() {
  QuietLogger logger;  // with the thread that it has: none may run where a child is forked
  const auto store = OpenJobStore(options_, &logger.logger);
  std::map<std::string, AcceptedJob> recovered;
  for (AcceptedJob& job : store->Recover()) recovered[job.snapshot.id] = std::move(job);
  for (int job = 0; job < log_->jobs; ++job) CheckJob(*store, recovered, job);
  for (const std::string& name : FilesIn(std::filesystem::path(options_.state_dir) / "artifacts")) {
    Require(!name.ends_with(".part"), name, "is left");
  }
  for (const char* complaint : {"ledger.salvaged", "ledger.job_unreadable"}) {
    Require(logger.Text().find(complaint) == std::string::npos, complaint, "was logged");
  }
}

void StoreChecker::CheckIntegrity() {
  sqlite3* database = nullptr;
  sqlite3_open((options_.state_dir + "/jobs.sqlite").c_str(), &database);
  std::string answer;
  sqlite3_exec(
      database, "PRAGMA integrity_check",
      [](void* to, int, char** text, char**) {
        *static_cast<std::string*>(to) += text[0];
        return 0;
      },
      &answer, nullptr);
  sqlite3_close(database);
  Require(answer == "ok", "integrity_check", "says: " + answer);
}

void StoreChecker::Require(bool holds, const std::string& id, const std::string& what) {
  if (!holds) violations_.push_back(id + " " + what);
}

void StoreChecker::CheckJob(JobStore& store, const std::map<std::string, AcceptedJob>& recovered,
                            int number) {
  Told& told = log_->told[number];
  const std::string id = IdOf(number);
  const auto job = store.Get(id);
  const uint8_t phase = told.phase;
  if (!job) {
    Require(phase == Told::kAsked || phase == Told::kDeleting || phase == Told::kDeleted, id,
            "was acknowledged and is gone");
    if (phase == Told::kDeleting) told.phase = Told::kDeleted;
    return;
  }
  Require(phase != Told::kDeleted, id, "was deleted and is there");
  const auto again = store.Add(NewJob("other" + std::to_string(number)), RequestOf(number));
  Require(again.first.id == id, id, "is not what its key makes");
  if (phase == Told::kAsked) told.phase = Told::kAdded;
  if (phase == Told::kEnded || phase == Told::kDeleting) {
    Require(job->state == static_cast<JobState>(told.end.load()), id, "has changed its end");
    if (phase == Told::kDeleting) told.phase = Told::kEnded;
  }
  Require(job->attempt >= told.starts, id, "has lost an attempt");
  Require(job->attempt <= told.starts_asked, id, "has an attempt that nobody asked for");
  told.starts = told.starts_asked = static_cast<int>(job->attempt);
  CheckEnd(store, *job, &told);
  if (IsTerminal(job->state)) return;
  if (phase == Told::kEnding) told.phase = Told::kAdded;  // its end was never told
  const auto accepted = recovered.find(id);
  if (accepted == recovered.end()) return Require(false, id, "is not recovered");
  const GenerationRequest asked = RequestOf(number), &kept = accepted->second.request;
  Require(kept.prompt == asked.prompt, id, "has another prompt");
  Require(kept.latents.has_value() == asked.latents.has_value() &&
              (!asked.latents || kept.latents->data == asked.latents->data),
          id, "has other latents");
  const int64_t step = accepted->second.checkpoint_step;
  Require(step >= told.checkpoint, id, "has lost a checkpoint");
  if (step > 0) {
    Require(store.ReadCheckpoint(id)->second == CheckpointAt(step), id, "has another checkpoint");
  }
  told.checkpoint = static_cast<int>(step);
}

void StoreChecker::CheckEnd(JobStore& store, const JobSnapshot& job, Told* told) {
  const auto artifact = store.GetArtifact(job.id, ArtifactFormat::kMp4);
  if (job.state != JobState::kSucceeded) {
    Require(artifact == nullptr, job.id, "has half an end");
  } else if (artifact == nullptr || job.artifacts.size() != 1) {
    Require(false, job.id, "has lost its result");
  } else {
    const std::string digest(told->sha256, 64);
    Require(Sha256Hex(ReadAll(*artifact)) == digest && job.artifacts[0].sha256 == digest, job.id,
            "has another result");
  }
  if (IsTerminal(job.state) && told->phase == Told::kEnding) told->phase = Told::kEnded;
}

}  // namespace denoised
