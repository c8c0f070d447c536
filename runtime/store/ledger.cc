#include "runtime/store/ledger.h"

#include <algorithm>
#include <chrono>
#include <future>
#include <map>
#include <memory>
#include <utility>

#include "runtime/caught.h"
#include "runtime/waited.h"

namespace denoised {
namespace {

// While the disk takes nothing, it is asked again this often.
constexpr std::chrono::milliseconds kRetry{250};
// One transaction writes no more, but for a single verb: who comes next waits for its end.
constexpr size_t kMostBytes = 16 << 20;

std::vector<uint64_t> NumbersOf(const std::vector<JobRow>& rows) {
  std::vector<uint64_t> numbers;
  for (const JobRow& row : rows) numbers.push_back(row.number);
  return numbers;
}

}  // namespace

Ledger::Ledger(LedgerFile file, StoreHooks* hooks, Logger* logger)
    : file_(std::move(file)), hooks_(hooks), logger_(logger), thread_([this] { Loop(); }) {}

Ledger::~Ledger() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

// ---- the callers' side

void Ledger::Post(Verb verb) {
  {
    const std::lock_guard lock(mutex_);
    verbs_.push_back(std::move(verb));
  }
  wake_.notify_all();
}

void Ledger::Await(Verb verb) {
  const auto error = Waited<std::optional<Error>>([&](auto done) {
    verb.done = std::move(done);
    Post(std::move(verb));
  });
  if (error) throw *error;
}

void Ledger::Accept(const JobRow& row, const GenerationRequest& request,
                    std::function<void(const std::optional<Error>&)> done) {
  RequestRow written = WriteRequest(request, ReadClocks(hooks_));
  Verb verb = {"accept", {}, std::move(done)};
  verb.bytes = written.text.size() + written.latents.size();
  verb.apply = [row, written = std::move(written)](LedgerFile& file) {
    file.InsertJob(row);
    file.InsertRequest(row.number, written);
  };
  Post(std::move(verb));
}

void Ledger::Change(std::string_view verb, const std::vector<JobRow>& rows) {
  Await({std::string(verb),
         [&](LedgerFile& file) {
           for (const JobRow& row : rows) file.UpdateJob(row);
         },
         {},
         /*keep_trying=*/false,
         NumbersOf(rows)});
}

void Ledger::Forget(uint64_t number) {
  Await({"forget",
         [number](LedgerFile& file) { file.RemoveJob(number); },
         {},
         /*keep_trying=*/false,
         {number}});
}

bool Ledger::Finish(const JobRow& row, std::function<void()> kept) {
  return Insist({"finish",
                 [row](LedgerFile& file) {
                   file.UpdateJob(row);
                   file.RemoveRequest(row.number);  // whose tensors may be large
                 },
                 {},
                 /*keep_trying=*/true,
                 {row.number}},
                std::move(kept));
}

bool Ledger::Recovered(const std::vector<JobRow>& rows, std::function<void()> kept) {
  return Insist({"recover",
                 [rows](LedgerFile& file) {
                   for (const JobRow& row : rows) file.UpdateJob(row);
                 },
                 {},
                 /*keep_trying=*/true,
                 NumbersOf(rows)},
                std::move(kept));
}

bool Ledger::Control(std::function<void(LedgerFile&)> write) {
  return Insist({"control", std::move(write), {}, /*keep_trying=*/true, {}, /*writes_all=*/true},
                [] {});
}

bool Ledger::Insist(Verb verb, std::function<void()> kept) {
  // Shared with the verb, which may outlive this call.
  auto first = std::make_shared<std::promise<bool>>();
  auto asked = std::make_shared<bool>(false);
  verb.done = [first, asked, kept = std::move(kept)](const std::optional<Error>& error) {
    if (!*asked) {
      *asked = true;
      first->set_value(!error);
    } else if (!error) {
      kept();
    }
  };
  Post(std::move(verb));
  return first->get_future().get();
}

void Ledger::ForgetLater(std::vector<uint64_t> numbers, std::function<void()> done) {
  Post({"forget",
        [numbers](LedgerFile& file) {
          for (const uint64_t number : numbers) file.RemoveJob(number);
        },
        [done = std::move(done)](const std::optional<Error>& error) {
          if (!error) done();
        },
        /*keep_trying=*/true, numbers});
}

std::optional<std::string> Ledger::trouble() const {
  const std::lock_guard lock(mutex_);
  return trouble_;
}

// ---- the ledger's thread

void Ledger::Loop() {
  for (;;) {
    std::deque<Verb> verbs;
    bool last = false;
    {
      std::unique_lock lock(mutex_);
      const auto news = [this] { return stopping_ || !verbs_.empty(); };
      if (trouble_ || !held_.empty()) {
        wake_.wait_for(lock, kRetry, news);
      } else {
        wake_.wait(lock, news);
      }
      verbs = TakeSome();
      last = stopping_ && verbs.empty();
    }
    // What was held goes first: it came first.
    verbs.insert(verbs.begin(), std::make_move_iterator(held_.begin()),
                 std::make_move_iterator(held_.end()));
    held_.clear();
    if (verbs.empty() && !last) {
      verbs.push_back({"probe", [](LedgerFile& file) { file.Touch(); }, [](const auto&) {}});
    }
    Process(std::move(verbs));
    if (last) return;
  }
}

std::deque<Ledger::Verb> Ledger::TakeSome() {
  std::deque<Verb> taken;
  size_t bytes = 0;
  while (!verbs_.empty() && (taken.empty() || bytes + verbs_.front().bytes <= kMostBytes)) {
    bytes += verbs_.front().bytes;
    taken.push_back(std::move(verbs_.front()));
    verbs_.pop_front();
  }
  return taken;
}

void Ledger::Process(std::deque<Verb> verbs) {
  if (verbs.empty()) return;
  std::vector<Verb*> all;
  for (Verb& verb : verbs) all.push_back(&verb);
  auto error = Try(all);
  if (!error || verbs.size() == 1) {
    Note(error);
    for (Verb& verb : verbs) Answer(std::move(verb), error);
    return;
  }
  std::map<uint64_t, Error>
      held;  // jobs of verbs that are tried again: no later one overtakes them
  for (Verb& verb : verbs) {
    std::optional<Error> why;
    for (const uint64_t number : verb.numbers) {
      if (const auto before = held.find(number); before != held.end()) why = before->second;
    }
    if (!why) why = Try({&verb});
    if (why && verb.keep_trying) {
      for (const uint64_t number : verb.numbers) held.emplace(number, *why);
    }
    Note(why);
    Answer(std::move(verb), why);
  }
}

std::optional<Error> Ledger::Try(const std::vector<Verb*>& verbs) {
  auto error = Caught([&] {
    file_.database().Begin();
    for (Verb* verb : verbs) verb->apply(file_);
    At(verbs, ".before_commit");
    file_.database().Commit();
  });
  if (error) {
    file_.database().Rollback();
    return error;
  }
  At(verbs, ".after_commit");
  return std::nullopt;
}

void Ledger::At(const std::vector<Verb*>& verbs, std::string_view edge) {
  if (hooks_ == nullptr) return;
  for (const Verb* verb : verbs) hooks_->At(verb->name + std::string(edge));
}

void Ledger::Answer(Verb verb, const std::optional<Error>& error) {
  verb.done(error);
  if (!error || !verb.keep_trying) return;
  if (!verb.writes_all || !HoldsLike(verb)) held_.push_back(std::move(verb));
}

bool Ledger::HoldsLike(const Verb& verb) const {
  return std::ranges::find(held_, verb.name, &Verb::name) != held_.end();
}

// Says each trouble once, and its end.
void Ledger::Note(const std::optional<Error>& error) {
  bool changed = false;
  {
    const std::lock_guard lock(mutex_);
    changed = trouble_.has_value() != error.has_value();
    trouble_ = error ? std::optional<std::string>(error->what()) : std::nullopt;
  }
  if (!changed) return;
  if (error) {
    logger_->Warning("ledger.not_written", {{"why", error->what()}});
  } else {
    logger_->Info("ledger.written_again");
  }
}

}  // namespace denoised
