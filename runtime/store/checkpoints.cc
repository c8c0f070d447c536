#include "runtime/store/checkpoints.h"

#include <array>
#include <cstring>
#include <utility>

#include "runtime/caught.h"
#include "runtime/loaders/sha256.h"

namespace denoised {
namespace {

// A file: these eight bytes, the step (64 bits, little-endian), SHA-256 over the step and what
// follows, the checkpoint.
constexpr std::string_view kMagic = "dncheck1";
constexpr size_t kStepAt = 8, kDigestAt = 16, kHeader = 48;

std::string Header(const StoredCheckpoint& checkpoint) {
  std::string header(kMagic);
  std::array<char, 8> step{};
  std::memcpy(step.data(), &checkpoint.step, step.size());
  header.append(step.data(), step.size());
  Sha256 hash;
  hash.Update({step.data(), step.size()});
  hash.Update(checkpoint.bytes);
  const auto digest = hash.Finish();
  header.append(digest.begin(), digest.end());
  return header;
}

std::optional<StoredCheckpoint> Decoded(const std::string& file) {
  if (file.size() < kHeader) return std::nullopt;
  StoredCheckpoint checkpoint;
  std::memcpy(&checkpoint.step, file.data() + kStepAt, sizeof checkpoint.step);
  checkpoint.bytes = file.substr(kHeader);
  const bool whole = file.compare(0, kHeader, Header(checkpoint)) == 0;
  return whole ? std::optional(std::move(checkpoint)) : std::nullopt;
}

static_assert(kDigestAt + 32 == kHeader);

}  // namespace

Checkpoints::Checkpoints(const StateFolder* folder, Logger* logger)
    : folder_(folder), logger_(logger), thread_([this] { Loop(); }) {}

Checkpoints::~Checkpoints() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Checkpoints::Put(const std::string& id, StoredCheckpoint checkpoint) {
  {
    const std::lock_guard lock(mutex_);
    waiting_[id] = std::move(checkpoint);
  }
  changed_.notify_all();
}

std::optional<StoredCheckpoint> Checkpoints::Read(const std::string& id) const {
  {
    const std::lock_guard lock(mutex_);
    if (const auto found = waiting_.find(id); found != waiting_.end()) return found->second;
    if (current_ && current_->first == id && !current_dropped_) return current_->second;
  }
  const auto file = folder_->checkpoints().Open(id);
  if (!file) return std::nullopt;
  std::string bytes(SizeOf(*file), '\0');
  bytes.resize(ReadFrom(*file, 0, bytes.data(), bytes.size(), id));
  auto checkpoint = Decoded(bytes);
  if (!checkpoint) logger_->Warning("checkpoint.damaged", {{"job", id}});
  return checkpoint;
}

void Checkpoints::Flush(const std::string& id) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock,
                [&] { return !waiting_.contains(id) && !(current_ && current_->first == id); });
}

void Checkpoints::Drop(const std::string& id) {
  const std::lock_guard lock(mutex_);
  waiting_.erase(id);
  if (current_ && current_->first == id) {
    current_dropped_ = true;  // the writer removes it
  } else {
    folder_->checkpoints().Remove(id);
  }
}

void Checkpoints::KeepOnly(const std::set<std::string>& ids) {
  for (const std::string& name : folder_->checkpoints().Names()) {
    if (!ids.contains(name)) folder_->checkpoints().Remove(name);
  }
}

void Checkpoints::Loop() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
    if (waiting_.empty()) return;
    auto next = waiting_.extract(waiting_.begin());
    current_.emplace(next.key(), std::move(next.mapped()));
    current_dropped_ = false;
    lock.unlock();
    Write(current_->first, current_->second);
    lock.lock();
    if (current_dropped_) folder_->checkpoints().Remove(current_->first);
    current_.reset();
    changed_.notify_all();
  }
}

// Progress can be made again; what is not written is dropped, with one line a bad spell.
void Checkpoints::Write(const std::string& id, const StoredCheckpoint& checkpoint) {
  const auto error = Caught([&] {
    folder_->RequireRoom(checkpoint.bytes.size());
    folder_->checkpoints().Write(id, {Header(checkpoint), checkpoint.bytes});
  });
  if (error && !warned_) {
    logger_->Warning("checkpoint.not_written", {{"job", id}, {"why", error->what()}});
  }
  warned_ = error.has_value();
}

}  // namespace denoised
