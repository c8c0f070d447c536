#include "server/convert_measured.h"

#include <google/protobuf/util/time_util.h>

namespace denoised {

TuneQuery FromProto(const v1::TuneRequest& message) {
  return {message.model(),
          {message.lengths().begin(), message.lengths().end()},
          {message.rows().begin(), message.rows().end()}};
}

v1::TuneProgress ToProto(const TuneProgress& progress) {
  v1::TuneProgress message;
  message.set_key(progress.key);
  message.set_backend(std::string(AttnBackendName(progress.backend)));
  if (progress.seconds) message.set_seconds(*progress.seconds);
  if (progress.relative_l2) message.set_relative_l2(*progress.relative_l2);
  message.set_done(progress.done);
  message.set_total(progress.total);
  message.set_why_not(progress.why_not);
  return message;
}

v1::MeasuredChoice ToProto(const MeasuredChoice& choice) {
  v1::MeasuredChoice message;
  message.set_key(ToText(choice.key));
  message.set_note(choice.note);
  if (!choice.row) return message;
  message.set_seconds(choice.row->seconds);
  message.set_relative_l2(choice.row->relative_l2);
  *message.mutable_measured_at() = google::protobuf::util::TimeUtil::TimeTToTimestamp(
      std::chrono::system_clock::to_time_t(choice.measured_at));
  return message;
}

v1::ImportMeasurementsResponse ToProto(const ImportedMeasurements& imported) {
  v1::ImportMeasurementsResponse message;
  message.set_taken(imported.taken);
  message.set_ignored(imported.ignored);
  message.set_note(imported.note);
  return message;
}

}  // namespace denoised
