#pragma once

/// The whole library. Every header also stands alone.

#include <fit/core/turns.hpp>
#include <fit/cost/cost.hpp>
#include <fit/cost/process.hpp>
#include <fit/cost/scaling.hpp>
#include <fit/cost/summary.hpp>
#include <fit/diffusion/loss.hpp>
#include <fit/diffusion/noise_schedule.hpp>
#include <fit/diffusion/sampler.hpp>
#include <fit/generation/generator.hpp>
#include <fit/generation/sampling.hpp>
#include <fit/grouping/image.hpp>
#include <fit/grouping/sequence.hpp>
#include <fit/grouping/shift.hpp>
#include <fit/grouping/video.hpp>
#include <fit/io/checkpoint.hpp>
#include <fit/io/generator_file.hpp>
#include <fit/io/sharded_checkpoint.hpp>
#include <fit/models/autoregressive_decoder.hpp>
#include <fit/models/classifier.hpp>
#include <fit/models/diffusion_decoder.hpp>
#include <fit/models/encoder.hpp>
#include <fit/training/adamw.hpp>
#include <fit/training/clip.hpp>
#include <fit/training/cross_entropy.hpp>
#include <fit/training/ema.hpp>
#include <fit/training/learning_rate.hpp>
#include <fit/training/leaves.hpp>
#include <fit/training/metrics.hpp>
#include <fit/training/state.hpp>
#include <fit/version.hpp>
