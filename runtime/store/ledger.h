// The durable record of jobs: verbs that others send to the one thread that owns the one
// connection. Torch-free; any thread.
//
// Verbs that wait together are one transaction, so that many clients share a sync of the disk;
// where it fails, each is tried alone. What is tried again is not overtaken by a later verb on the
// same job.
#ifndef DENOISED_RUNTIME_STORE_LEDGER_H_
#define DENOISED_RUNTIME_STORE_LEDGER_H_

#include <condition_variable>
#include <deque>
#include <filesystem>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "backends/error.h"
#include "runtime/log.h"
#include "runtime/store/hooks.h"
#include "runtime/store/ledger_file.h"

namespace denoised {

class Ledger {
 public:
  // `file` was opened by this thread and is the ledger's from now on. Hooks and logger are
  // borrowed.
  Ledger(LedgerFile file, StoreHooks* hooks, Logger* logger);
  // Ends once every verb was tried.
  ~Ledger();

  // Returns at once; `done` runs on the ledger's thread when the job is on disk, or with why it
  // cannot be: nothing has changed then.
  void Accept(const JobRow& row, const GenerationRequest& request,
              std::function<void(const std::optional<Error>&)> done);
  // These return when the verb is on disk, and throw where it cannot be: nothing has changed then.
  void Change(std::string_view verb, const std::vector<JobRow>& rows);
  void Forget(uint64_t number);

  // The end of a job is never given up. True: it is on disk. False: the disk does not take it now;
  // it is tried again until it does, and then `kept` runs on the ledger's thread.
  bool Finish(const JobRow& row, std::function<void()> kept);
  // Likewise what jobs of an earlier life are now.
  bool Recovered(const std::vector<JobRow>& rows, std::function<void()> kept);
  // Likewise what operators changed: `write` makes tables what they are to be by the time it runs.
  bool Control(std::function<void(LedgerFile&)> write);
  // Returns at once; `done` runs on the ledger's thread when the rows are gone.
  void ForgetLater(std::vector<uint64_t> numbers, std::function<void()> done);

  // What the last attempt to write failed with; empty since one succeeded.
  std::optional<std::string> trouble() const;

 private:
  struct Verb {
    std::string name;
    std::function<void(LedgerFile&)> apply;
    // Ledger's thread, at each try until it succeeds (`keep_trying`) or once.
    std::function<void(const std::optional<Error>&)> done;
    bool keep_trying = false;
    std::vector<uint64_t> numbers = {};  // of the jobs whose rows it writes
    // It writes all that is to be written under its name: one that is tried again is enough.
    bool writes_all = false;
    size_t bytes = 0;  // that it writes, where they may be many
  };

  void Post(Verb verb);
  void Await(Verb verb);  // throws what it failed with
  // Tries until it succeeds: whether it did at once, else `kept` runs later.
  bool Insist(Verb verb, std::function<void()> kept);

  // The ledger's thread.
  void Loop();
  std::deque<Verb> TakeSome();  // under mutex_
  void Process(std::deque<Verb> verbs);
  std::optional<Error> Try(const std::vector<Verb*>& verbs);
  void Answer(Verb verb, const std::optional<Error>& error);
  bool HoldsLike(const Verb& verb) const;
  void Note(const std::optional<Error>& error);
  void At(const std::vector<Verb*>& verbs, std::string_view edge);

  LedgerFile file_;
  StoreHooks* const hooks_;
  Logger* const logger_;
  std::deque<Verb> held_;  // the ledger's thread alone
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Verb> verbs_;
  std::optional<std::string> trouble_;
  bool stopping_ = false;
  std::thread thread_;  // last
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_STORE_LEDGER_H_
