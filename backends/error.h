// The one exception type of the core, and the canonical codes it carries.
//
// Below the server a failure is `throw Error(code, what was wanted, what came)`. The engine thread
// catches it once, at its root, and makes it the job's result; server/convert maps it to a gRPC
// status. What is expected (queue full, cancelled, backend refused) is a value, not an exception.
#ifndef DENOISED_BACKENDS_ERROR_H_
#define DENOISED_BACKENDS_ERROR_H_

#include <chrono>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

namespace denoised {

// Same numbers as google.rpc.Code, so that the edge can cast.
enum class StatusCode : int {
  kOk = 0,
  kCancelled = 1,
  kUnknown = 2,
  kInvalidArgument = 3,
  kDeadlineExceeded = 4,
  kNotFound = 5,
  kAlreadyExists = 6,
  kPermissionDenied = 7,
  kResourceExhausted = 8,
  kFailedPrecondition = 9,
  kAborted = 10,
  kOutOfRange = 11,
  kUnimplemented = 12,
  kInternal = 13,
  kUnavailable = 14,
  kDataLoss = 15,
};

// `field` names the request field or file that is at fault ("height", "vae/config.json"), empty
// where there is none. `reason` is a stable upper-case word for programs (google.rpc.ErrorInfo);
// empty means that the code says enough.
class Error : public std::runtime_error {
 public:
  Error(StatusCode code, const std::string& message, std::string field = "",
        std::string reason = "")
      : std::runtime_error(message),
        code_(code),
        field_(std::move(field)),
        reason_(std::move(reason)) {}

  StatusCode code() const { return code_; }
  const std::string& field() const { return field_; }
  const std::string& reason() const { return reason_; }
  // How soon the same may succeed, where somebody can tell; unset elsewhere.
  std::optional<std::chrono::milliseconds> retry_after() const { return retry_after_; }
  Error RetryAfter(std::chrono::milliseconds time) && {
    retry_after_ = time;
    return std::move(*this);
  }
  // More for people than the message has room for, in lines; "" = it says all.
  const std::string& details() const { return details_; }
  Error Detailed(std::string details) && {
    details_ = std::move(details);
    return std::move(*this);
  }

 private:
  StatusCode code_;
  std::string field_;
  std::string reason_;
  std::optional<std::chrono::milliseconds> retry_after_;
  std::string details_;
};

// INVALID_ARGUMENT for a named request field.
inline Error InvalidField(const std::string& field, const std::string& message) {
  return Error(StatusCode::kInvalidArgument, field + ": " + message, field, "INVALID_FIELD");
}

// The same error about a field that is called otherwise: the beginning of its field and of its
// message is replaced where it is `from`.
inline Error Renamed(const Error& error, const std::string& from, const std::string& to) {
  const auto renamed = [&](const std::string& text) {
    return text.starts_with(from) ? to + text.substr(from.size()) : text;
  };
  return Error(error.code(), renamed(error.what()), renamed(error.field()), error.reason())
      .Detailed(error.details());
}

}  // namespace denoised

#endif  // DENOISED_BACKENDS_ERROR_H_
