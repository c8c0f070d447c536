// Calls of AdminService about measurements: a stream that lives as long as a tune, export, import.
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "server/admin_service.h"
#include "server/call.h"
#include "server/convert.h"
#include "server/convert_measured.h"
#include "server/job_stream.h"

namespace denoised {
namespace {

// A message for each measurement; the tune ends with the stream. What the engine's thread tells is
// held until the client takes it: some hundred small messages.
class TuneStream : public PulledStream {
 public:
  TuneStream(CallTimer timer, Engine* engine, TaskThread* dispatcher)
      : PulledStream(timer), engine_(engine), dispatcher_(dispatcher) {}

  // For Open().
  void Begin(TuneQuery query) {
    const std::function<void()> wake = Waker(dispatcher_);
    engine_->tuner().Tune(
        std::move(query), cancel_,
        [told = told_, wake](const TuneProgress& progress) {
          {
            const std::lock_guard lock(told->mutex);
            told->progress.push_back(progress);
          }
          wake();
        },
        [told = told_, wake](const std::optional<Error>& error) {
          {
            const std::lock_guard lock(told->mutex);
            told->end = error ? ToStatus(*error) : grpc::Status::OK;
          }
          wake();
        });
  }

 protected:
  Action Next() override {
    const std::lock_guard lock(told_->mutex);
    if (told_->progress.empty()) return {.message = std::nullopt, .end = told_->end};
    const TuneProgress progress = std::move(told_->progress.front());
    told_->progress.pop_front();
    return {.message = SerializeMessage(ToProto(progress)), .end = std::nullopt};
  }
  void OnClientGone() override { cancel_->cancelled = true; }

 private:
  // By the engine, which may outlive the stream.
  struct Told {
    std::mutex mutex;  // guards both
    std::deque<TuneProgress> progress;
    std::optional<grpc::Status> end;
  };

  Engine* const engine_;
  TaskThread* const dispatcher_;
  const std::shared_ptr<CancelToken> cancel_ = std::make_shared<CancelToken>();
  const std::shared_ptr<Told> told_ = std::make_shared<Told>();
};

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* AdminService::Tune(grpc::CallbackServerContext* context,
                                                               const grpc::ByteBuffer* in) {
  const CallTimer timer(context, with_.metrics, "Tune");
  return StartStream(timer, [&] {
    const auto stream = std::make_shared<TuneStream>(timer, &engine(), with_.dispatcher);
    stream->Hold();
    stream->Open([&] {
      v1::TuneRequest request;
      ParseMessage(*in, &request);
      stream->Keep(with_.open_calls->Enter(context->peer()));
      TuneQuery query = FromProto(request);
      query.who = context->peer();
      stream->Begin(std::move(query));
    });
    return stream.get();
  });
}

grpc::ServerUnaryReactor* AdminService::ExportMeasurements(grpc::CallbackServerContext* context,
                                                           const grpc::ByteBuffer* in,
                                                           grpc::ByteBuffer* out) {
  return AnswerFromPool<v1::ExportMeasurementsRequest>(
      context, with_.pool, in, out, with_.metrics, "ExportMeasurements",
      [this](const v1::ExportMeasurementsRequest&) {
        v1::Measurements measurements;
        measurements.set_json(engine().tuner().Export());
        return measurements;
      });
}

grpc::ServerUnaryReactor* AdminService::ImportMeasurements(grpc::CallbackServerContext* context,
                                                           const grpc::ByteBuffer* in,
                                                           grpc::ByteBuffer* out) {
  return AnswerFromPool<v1::Measurements>(
      context, with_.pool, in, out, with_.metrics, "ImportMeasurements",
      [this, peer = context->peer()](const v1::Measurements& measurements) {
        return ToProto(engine().tuner().Import(measurements.json(), peer));
      });
}

}  // namespace denoised
