// Compiles kernel.cu for the host: one C function per combination of types, called by host.py.

#include "host_shim.h"

namespace {

struct Sizes {
  int heads, head_width, levels, points;
} sizes;

}  // namespace

#define RVOS_HEADS sizes.heads
#define RVOS_HEAD_WIDTH sizes.head_width
#define RVOS_LEVELS sizes.levels
#define RVOS_POINTS sizes.points
#define RVOS_HOST
#include "kernel.cu"

namespace {

struct Launch {
  int grid[3], block[2];
};

template <typename T, typename O, typename L>
void run(const void* value, const int* level_shapes, const float* reference_points,
         const void* sampling_offsets, const void* attention_logits, int pixels, int queries,
         void* output, const Sizes* given, const Launch* at) {
  sizes = *given;
  launch_warps(dim3(at->grid[0], at->grid[1], at->grid[2]), dim3(at->block[0], at->block[1]), [&] {
    rvos::ms_deform_attn(static_cast<const T*>(value), level_shapes, reference_points,
                         static_cast<const O*>(sampling_offsets),
                         static_cast<const L*>(attention_logits), pixels, queries,
                         static_cast<T*>(output));
  });
}

using fp32 = float;
using fp16 = __half;
using bf16 = __nv_bfloat16;

}  // namespace

#define RVOS_EXPORT(T, O, L)                                                                  \
  extern "C" void rvos_##T##_##O##_##L(                                                       \
      const void* value, const int* level_shapes, const float* reference_points,              \
      const void* sampling_offsets, const void* attention_logits, int pixels, int queries,    \
      void* output, const Sizes* given, const Launch* at) {                                   \
    run<T, O, L>(value, level_shapes, reference_points, sampling_offsets, attention_logits,   \
                 pixels, queries, output, given, at);                                         \
  }

RVOS_EXPORT(fp32, fp32, fp32)
RVOS_EXPORT(fp16, fp16, fp16)
RVOS_EXPORT(fp16, fp16, fp32)
RVOS_EXPORT(fp16, fp32, fp16)
RVOS_EXPORT(fp16, fp32, fp32)
RVOS_EXPORT(bf16, bf16, bf16)
RVOS_EXPORT(bf16, bf16, fp32)
RVOS_EXPORT(bf16, fp32, bf16)
RVOS_EXPORT(bf16, fp32, fp32)
