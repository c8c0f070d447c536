// Measurements as messages. As convert.h has it.
#ifndef DENOISED_SERVER_CONVERT_MEASURED_H_
#define DENOISED_SERVER_CONVERT_MEASURED_H_

#include "denoised/v1/admin.pb.h"
#include "runtime/measured_table.h"
#include "runtime/tuner.h"

namespace denoised {

TuneQuery FromProto(const v1::TuneRequest& message);
v1::TuneProgress ToProto(const TuneProgress& progress);
v1::MeasuredChoice ToProto(const MeasuredChoice& choice);
v1::ImportMeasurementsResponse ToProto(const ImportedMeasurements& imported);

}  // namespace denoised

#endif  // DENOISED_SERVER_CONVERT_MEASURED_H_
