// Computes multi-scale deformable attention on a CPU, with its gradients, behind a plain C interface.
//
// It computes rvos_deploy.networks.modules.ms_deform_attn.ms_deform_attn (Zhu et al. 2021):
//
//   value             [B,S,heads,D]               float32, float64, float16 or bfloat16
//   level_shapes      int32 [levels,2]            (height, width); the areas sum to S
//   reference_points  [Q,2]                       float32 (float64 if value is); (x, y) in 0..1
//   sampling_offsets  [B,Q,heads,levels,points,2] as value, or float32; (x, y) in pixels
//   attention_logits  [B,Q,heads,levels*points]   in the type of sampling_offsets
//   output            [B,Q,heads*D]               as value
//
// Arithmetic is float32 (float64 if value is). Pixels outside a level are neither read nor counted,
// so no NaN or infinity leaks from them. An offset that is not finite reads nothing.
//
// The library has no state and no dependency: a call starts its threads and joins them, so forked
// processes may call it. It holds the kernel once per instruction set and chooses at run time.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <thread>
#include <type_traits>
#include <vector>

#if defined(_WIN32)
#define RVOS_EXPORT extern "C" __declspec(dllexport)
#else
#define RVOS_EXPORT extern "C" __attribute__((visibility("default")))
#endif

#define RVOS_INLINE inline __attribute__((always_inline))

namespace {

struct Sizes {
  int64_t batch, pixels, queries, heads, channels, levels, points;
};

struct Half {
  uint16_t bits;
};
struct Bfloat16 {
  uint16_t bits;
};

constexpr int32_t kFarthest = 1 << 22;  // pixels; whole numbers and halves are exact in float32

inline float from_bits(uint32_t bits) {
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}
inline uint32_t to_bits(float number) {
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  return bits;
}

inline float widen(float number) { return number; }
inline double widen(double number) { return number; }
inline float widen(Bfloat16 number) { return from_bits(uint32_t{number.bits} << 16); }
inline float widen(Half number) {
  const uint32_t sign = uint32_t{number.bits & 0x8000u} << 16;
  const uint32_t rest = uint32_t{number.bits & 0x7fffu} << 13;
  // Exponents start at 15 in float16 and at 127 in float32. The product is exact for subnormals.
  const float finite = from_bits(rest) * 0x1p112f;
  const uint32_t special = rest | 0x7f800000u;
  const uint32_t magnitude = rest >= 0x0f800000u ? special : to_bits(finite);
  return from_bits(sign | magnitude);
}

inline void narrow(float number, float* to) { *to = number; }
inline void narrow(double number, double* to) { *to = number; }
inline void narrow(float number, Bfloat16* to) {
  const uint32_t bits = to_bits(number);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to->bits = static_cast<uint16_t>(number == number ? rounded : 0x7fc0u);
}
inline void narrow(float number, Half* to) {
  const uint32_t bits = to_bits(number), sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude >= 0x7f800000u) {
    half = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  } else if (magnitude >= 0x477ff000u) {  // 65520 and more round to infinity
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // subnormal: the sum rounds at the last bit of float16
    half = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  }
  to->bits = static_cast<uint16_t>(sign | half);
}

template <typename Real>
using Integer = std::conditional_t<sizeof(Real) == 4, int32_t, int64_t>;

// What is computed per sample of one (query, head). Arrays of one allocation, which the kernel
// borrows: it must instantiate no template of the standard library, because the linker might keep
// the instance with the widest instructions for everyone.
template <typename Real>
struct Samples {
  Real *x, *y, *logit, *weight;
  Real *rest_x, *rest_y;
  Integer<Real> *whole_x, *whole_y;
  Integer<Real> *width, *height, *start;  // of the sample's level; start in pixels
  Integer<Real> *pixel, *inside;          // the upper left corner; a bit per corner
  Real* share[4];
};

// Arrays hold whole vectors, so loops over samples have no remainder.
inline int64_t pad(int64_t count) { return (count + 15) & ~int64_t{15}; }

template <typename Real>
class Workspace {
 public:
  Workspace(const Sizes& sizes, const int32_t* level_shapes)
      : padded_(pad(sizes.levels * sizes.points)), reals_(10 * padded_), integers_(7 * padded_) {
    Real* real = reals_.data();
    for (Real** array : {&samples_.x, &samples_.y, &samples_.logit, &samples_.weight,
                         &samples_.rest_x, &samples_.rest_y, &samples_.share[0],
                         &samples_.share[1], &samples_.share[2], &samples_.share[3]}) {
      *array = real;
      real += padded_;
    }
    Integer<Real>* integer = integers_.data();
    for (Integer<Real>** array : {&samples_.whole_x, &samples_.whole_y, &samples_.width,
                                  &samples_.height, &samples_.start, &samples_.pixel,
                                  &samples_.inside}) {
      *array = integer;
      integer += padded_;
    }
    set_levels(sizes, level_shapes);
  }

  const Samples<Real>& samples() const { return samples_; }

 private:
  void set_levels(const Sizes& sizes, const int32_t* level_shapes) {
    const int64_t count = sizes.levels * sizes.points;
    int64_t pixels = 0;
    for (int64_t k = 0; k < count; ++k) {
      const int64_t level = k / sizes.points;
      samples_.height[k] = level_shapes[2 * level];
      samples_.width[k] = level_shapes[2 * level + 1];
      samples_.start[k] = static_cast<Integer<Real>>(pixels);
      if ((k + 1) % sizes.points == 0) pixels += int64_t{samples_.height[k]} * samples_.width[k];
    }
    for (int64_t k = count; k < padded_; ++k) {  // weights of 0, and never outside
      samples_.height[k] = samples_.width[k] = 1 << 10;
      samples_.logit[k] = -std::numeric_limits<Real>::infinity();
    }
  }

  int64_t padded_;
  std::vector<Real> reals_;
  std::vector<Integer<Real>> integers_;
  Samples<Real> samples_;
};

}  // namespace

#if (defined(__x86_64__) || defined(_M_X64)) && (defined(__GNUC__) || defined(__clang__))
#define RVOS_X86 1
#else
#define RVOS_X86 0
#endif

// Clang attaches targets to functions by an attribute, GCC by a pragma.
#if defined(__clang__)
#define RVOS_TARGET(features) \
  _Pragma(RVOS_TEXT(clang attribute push(__attribute__((target(features))), apply_to = function)))
#define RVOS_END_TARGET _Pragma("clang attribute pop")
#define RVOS_TEXT(...) #__VA_ARGS__
#endif

#define RVOS_VECTOR_BYTES 16
namespace baseline {
namespace {
#include "ms_deform_attn_kernel.inl"
}
}  // namespace baseline
#undef RVOS_VECTOR_BYTES

#if RVOS_X86
#if defined(__clang__)
RVOS_TARGET("avx2,fma,f16c")
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#define RVOS_VECTOR_BYTES 32
namespace avx2 {
namespace {
#include "ms_deform_attn_kernel.inl"
}
}  // namespace avx2
#undef RVOS_VECTOR_BYTES
#if defined(__clang__)
RVOS_END_TARGET
RVOS_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,prefer-vector-width=512")
#endif
#define RVOS_VECTOR_BYTES 64
namespace avx512 {
namespace {
#include "ms_deform_attn_kernel.inl"
}
}  // namespace avx512
#undef RVOS_VECTOR_BYTES
#if defined(__clang__)
RVOS_END_TARGET
#else
#pragma GCC pop_options
#endif
#endif

namespace {

enum Result { kDone = 0, kNoMemory = 1, kUnknownType = 2, kUnknownInstructions = 3 };
enum Type { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBfloat16 = 3 };
enum Instructions { kBaseline = 0, kAvx2 = 1, kAvx512 = 2 };

bool supported(int instructions) {
#if RVOS_X86
  __builtin_cpu_init();
  const bool wide = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (instructions == kAvx2) return wide;
  if (instructions == kAvx512) {
    return wide && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  }
#endif
  return instructions == kBaseline;
}

// Runs tasks 0..count-1 on threads. Each takes a contiguous share, since neighbours share pixels.
// Exceptions stay inside: they must not cross the C interface.
template <typename Task>
Result run(int64_t count, int64_t threads, Task task) {
  threads = std::max<int64_t>(1, std::min(threads, count));
  std::vector<Result> results(threads, kDone);
  const auto work = [&](int64_t thread) {
    try {
      task(thread * count / threads, (thread + 1) * count / threads);
    } catch (...) {
      results[thread] = kNoMemory;
    }
  };
  std::vector<std::thread> others;
  others.reserve(threads);
  int64_t started = 1;
  try {
    for (; started < threads; ++started) others.emplace_back(work, started);
  } catch (...) {  // no more threads: this one does what is left
  }
  work(0);
  for (int64_t thread = started; thread < threads; ++thread) work(thread);
  for (std::thread& other : others) other.join();
  return *std::max_element(results.begin(), results.end());
}

// Starting a thread takes about 20 microseconds: one gets at least ten times as much work.
int64_t useful_threads(const Sizes& sizes, int64_t threads) {
  const double products = 4.0 * sizes.batch * sizes.queries * sizes.heads * sizes.channels *
                          sizes.levels * sizes.points;
  return std::min<int64_t>(threads, 1 + static_cast<int64_t>(products / 1e6));
}

template <typename Real, typename Value, typename Point>
Result forward(const Sizes& sizes, const int32_t* level_shapes, const void* value,
               const void* reference_points, const void* sampling_offsets,
               const void* attention_logits, void* output, int64_t threads, int instructions) {
  return run(sizes.batch * sizes.queries, useful_threads(sizes, threads),
             [&](int64_t first, int64_t end) {
               auto* kernel = &baseline::forward<Real, Value, Point>;
#if RVOS_X86
               if (instructions == kAvx2) kernel = &avx2::forward<Real, Value, Point>;
               if (instructions == kAvx512) kernel = &avx512::forward<Real, Value, Point>;
#endif
               const Workspace<Real> workspace(sizes, level_shapes);
               kernel(sizes, workspace.samples(), static_cast<const Value*>(value),
                      static_cast<const Real*>(reference_points),
                      static_cast<const Point*>(sampling_offsets),
                      static_cast<const Point*>(attention_logits), static_cast<Value*>(output),
                      first, end);
             });
}

template <typename Real>
Result backward(const Sizes& sizes, const int32_t* level_shapes, const void* value,
                const void* reference_points, const void* sampling_offsets,
                const void* attention_logits, const void* grad_output, void* grad_value,
                void* grad_offsets, void* grad_logits, int64_t threads, int instructions) {
  std::memset(grad_value, 0,
              sizeof(Real) * sizes.batch * sizes.pixels * sizes.heads * sizes.channels);
  return run(sizes.batch * sizes.heads, useful_threads(sizes, threads),
             [&](int64_t first, int64_t end) {
               auto* kernel = &baseline::backward<Real>;
#if RVOS_X86
               if (instructions == kAvx2) kernel = &avx2::backward<Real>;
               if (instructions == kAvx512) kernel = &avx512::backward<Real>;
#endif
               const Workspace<Real> workspace(sizes, level_shapes);
               for (int64_t task = first; task < end; ++task) {
                 kernel(sizes, workspace.samples(), static_cast<const Real*>(value),
                        static_cast<const Real*>(reference_points),
                        static_cast<const Real*>(sampling_offsets),
                        static_cast<const Real*>(attention_logits),
                        static_cast<const Real*>(grad_output), static_cast<Real*>(grad_value),
                        static_cast<Real*>(grad_offsets), static_cast<Real*>(grad_logits),
                        task / sizes.heads, task % sizes.heads);
               }
             });
}

}  // namespace

// Returns the best instruction set of this CPU: 0 baseline, 1 AVX2, 2 AVX-512.
RVOS_EXPORT int32_t rvos_instructions(void) {
  return supported(kAvx512) ? kAvx512 : supported(kAvx2) ? kAvx2 : kBaseline;
}

// Returns 0; 1: no memory; 2: unknown types; 3: the CPU lacks the instruction set.
RVOS_EXPORT int32_t rvos_ms_deform_attn(const Sizes* sizes, const int32_t* level_shapes,
                                        const void* value, const void* reference_points,
                                        const void* sampling_offsets,
                                        const void* attention_logits, void* output,
                                        int32_t value_type, int32_t point_type, int32_t threads,
                                        int32_t instructions) {
  if (!supported(instructions)) return kUnknownInstructions;
#define RVOS_CASE(value_id, point_id, Real, Value, Point)                                       \
  if (value_type == value_id && point_type == point_id) {                                       \
    return forward<Real, Value, Point>(*sizes, level_shapes, value, reference_points,           \
                                       sampling_offsets, attention_logits, output, threads,     \
                                       instructions);                                           \
  }
  RVOS_CASE(kFloat32, kFloat32, float, float, float)
  RVOS_CASE(kFloat64, kFloat64, double, double, double)
  RVOS_CASE(kFloat16, kFloat32, float, Half, float)
  RVOS_CASE(kFloat16, kFloat16, float, Half, Half)
  RVOS_CASE(kBfloat16, kFloat32, float, Bfloat16, float)
  RVOS_CASE(kBfloat16, kBfloat16, float, Bfloat16, Bfloat16)
#undef RVOS_CASE
  return kUnknownType;
}

// Writes the gradients of value, sampling_offsets and attention_logits. All arrays have one type:
// float32 or float64. Returns as rvos_ms_deform_attn.
RVOS_EXPORT int32_t rvos_ms_deform_attn_backward(
    const Sizes* sizes, const int32_t* level_shapes, const void* value,
    const void* reference_points, const void* sampling_offsets, const void* attention_logits,
    const void* grad_output, void* grad_value, void* grad_offsets, void* grad_logits,
    int32_t type, int32_t threads, int32_t instructions) {
  if (!supported(instructions)) return kUnknownInstructions;
  if (type == kFloat32) {
    return backward<float>(*sizes, level_shapes, value, reference_points, sampling_offsets,
                           attention_logits, grad_output, grad_value, grad_offsets, grad_logits,
                           threads, instructions);
  }
  if (type == kFloat64) {
    return backward<double>(*sizes, level_shapes, value, reference_points, sampling_offsets,
                            attention_logits, grad_output, grad_value, grad_offsets, grad_logits,
                            threads, instructions);
  }
  return kUnknownType;
}

// For benchmarks: sums float32 rows of value at pixels [B,Q,heads,4*levels*points], whose time is a
// floor for rvos_ms_deform_attn. Channels are a multiple of 16. Returns as rvos_ms_deform_attn.
RVOS_EXPORT int32_t rvos_sum_rows(const Sizes* sizes, const float* value, const int32_t* pixels,
                                  float* output, int32_t threads, int32_t instructions) {
  if (!supported(instructions)) return kUnknownInstructions;
  return run(sizes->batch * sizes->queries, useful_threads(*sizes, threads),
             [&](int64_t first, int64_t end) {
               auto* kernel = &baseline::sum_rows;
#if RVOS_X86
               if (instructions == kAvx2) kernel = &avx2::sum_rows;
               if (instructions == kAvx512) kernel = &avx512::sum_rows;
#endif
               kernel(*sizes, value, pixels, output, first, end);
             });
}
