// Readiness as a client sees it: a new connection to our own public port and a health check over
// it.
#ifndef DENOISED_SERVER_SELF_CHECK_H_
#define DENOISED_SERVER_SELF_CHECK_H_

#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace denoised {

class SelfCheck {
 public:
  // Called once with "" (the port says SERVING) or a short sentence.
  using Answer = std::function<void(std::string)>;

  // `target` as gRPC writes it: "127.0.0.1:50051".
  explicit SelfCheck(std::string target);
  // Ends the check under way; those still waiting get an answer.
  ~SelfCheck();
  SelfCheck(const SelfCheck&) = delete;
  SelfCheck& operator=(const SelfCheck&) = delete;

  // Any thread; returns at once. All who ask while a check is under way share the next one, so that
  // a crowd of probes costs no more than one at a time.
  void Ask(Answer answer);

 private:
  void Run();

  const std::string target_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Answer> waiting_;  // guarded by mutex_
  bool ending_ = false;          // guarded by mutex_
  std::thread thread_;           // last: it uses the others
};

}  // namespace denoised

#endif  // DENOISED_SERVER_SELF_CHECK_H_
