// Multi-scale deformable attention on the CPU, forward and backward, for training.
//
// Same meaning as rvos_deploy.networks.pan2024.modules.deformable_attention.ms_deform_attn after its softmax. One task is
// one (batch, head): it alone writes its slice of grad_value, so no task waits for another.

#include <ATen/Parallel.h>
#include <torch/extension.h>

#include <cmath>
#include <vector>

namespace {

struct Level {
  int64_t height, width, start;
};

struct Sizes {
  int64_t batch, pixels, heads, channels, queries, levels, points;
};

std::vector<Level> read_levels(const at::Tensor& level_shapes) {
  const auto shapes = level_shapes.to(at::kCPU, at::kLong).contiguous();
  const int64_t* sides = shapes.data_ptr<int64_t>();
  std::vector<Level> levels;
  int64_t start = 0;
  for (int64_t i = 0; i < shapes.size(0); ++i) {
    levels.push_back({sides[2 * i], sides[2 * i + 1], start});
    start += sides[2 * i] * sides[2 * i + 1];
  }
  return levels;
}

Sizes check(const at::Tensor& value, const std::vector<Level>& levels, const at::Tensor& reference,
            const at::Tensor& offsets, const at::Tensor& weights) {
  const Sizes s{value.size(0),   value.size(1),   value.size(2),  value.size(3),
                offsets.size(1), offsets.size(3), offsets.size(4)};
  const auto& last = levels.back();
  TORCH_CHECK(last.start + last.height * last.width == s.pixels,
              "level shapes do not add up to the pixels of value");
  TORCH_CHECK(offsets.sizes() ==
                  at::IntArrayRef({s.batch, s.queries, s.heads, s.levels, s.points, 2}),
              "sampling offsets have another shape");
  TORCH_CHECK(weights.sizes() ==
                  at::IntArrayRef({s.batch, s.queries, s.heads, s.levels, s.points}),
              "attention weights have another shape");
  TORCH_CHECK(reference.sizes() == at::IntArrayRef({s.queries, 2}),
              "reference points have another shape");
  TORCH_CHECK(static_cast<int64_t>(levels.size()) == s.levels, "another number of levels");
  return s;
}

// The (at most four) pixels around a sampling point: row in value, bilinear weight, and its slopes.
template <typename T>
struct Corner {
  int64_t pixel;
  T weight, slope_x, slope_y;
};

template <typename T>
int find_corners(const Level& level, T x, T y, Corner<T>* corners) {
  // Far points are outside in any case; the bound keeps the conversion to integers defined.
  if (!(x > T(-1) && y > T(-1) && x < T(level.width) && y < T(level.height))) return 0;
  const int64_t x0 = static_cast<int64_t>(std::floor(x)), y0 = static_cast<int64_t>(std::floor(y));
  const T right = x - T(x0), down = y - T(y0);
  int count = 0;
  for (int dy = 0; dy < 2; ++dy) {
    for (int dx = 0; dx < 2; ++dx) {
      const int64_t px = x0 + dx, py = y0 + dy;
      if (px < 0 || py < 0 || px >= level.width || py >= level.height) continue;
      const T wx = dx ? right : 1 - right, wy = dy ? down : 1 - down;
      corners[count++] = {level.start + py * level.width + px, wx * wy, dx ? wy : -wy,
                          dy ? wx : -wx};
    }
  }
  return count;
}

template <typename T, typename Visit>
void for_each_point(const Sizes& s, const std::vector<Level>& levels, const T* reference,
                    const T* offsets, int64_t b, int64_t h, int64_t q, Visit&& visit) {
  const int64_t first = ((b * s.queries + q) * s.heads + h) * s.levels * s.points;
  for (int64_t l = 0; l < s.levels; ++l) {
    const Level& level = levels[l];
    for (int64_t p = 0; p < s.points; ++p) {
      const int64_t point = first + l * s.points + p;
      const T x = reference[2 * q] * T(level.width) + offsets[2 * point] - T(0.5);
      const T y = reference[2 * q + 1] * T(level.height) + offsets[2 * point + 1] - T(0.5);
      Corner<T> corners[4];
      visit(point, corners, find_corners(level, x, y, corners));
    }
  }
}

template <typename T>
void forward_kernel(const Sizes& s, const std::vector<Level>& levels, const T* value,
                    const T* reference, const T* offsets, const T* weights, T* output) {
  at::parallel_for(0, s.batch * s.heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / s.heads, h = task % s.heads;
      const T* map = value + (b * s.pixels * s.heads + h) * s.channels;
      for (int64_t q = 0; q < s.queries; ++q) {
        T* out = output + ((b * s.queries + q) * s.heads + h) * s.channels;
        std::fill(out, out + s.channels, T(0));
        for_each_point(s, levels, reference, offsets, b, h, q,
                       [&](int64_t point, const Corner<T>* corners, int count) {
                         for (int i = 0; i < count; ++i) {
                           const T weight = weights[point] * corners[i].weight;
                           const T* row = map + corners[i].pixel * s.heads * s.channels;
                           for (int64_t c = 0; c < s.channels; ++c) out[c] += weight * row[c];
                         }
                       });
      }
    }
  });
}

template <typename T>
void backward_kernel(const Sizes& s, const std::vector<Level>& levels, const T* value,
                     const T* reference, const T* offsets, const T* weights, const T* grad_output,
                     T* grad_value, T* grad_offsets, T* grad_weights) {
  at::parallel_for(0, s.batch * s.heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / s.heads, h = task % s.heads;
      const int64_t map = (b * s.pixels * s.heads + h) * s.channels;
      for (int64_t q = 0; q < s.queries; ++q) {
        const T* grad = grad_output + ((b * s.queries + q) * s.heads + h) * s.channels;
        for_each_point(
            s, levels, reference, offsets, b, h, q,
            [&](int64_t point, const Corner<T>* corners, int count) {
              T to_weight = 0, to_x = 0, to_y = 0;
              for (int i = 0; i < count; ++i) {
                const int64_t row = map + corners[i].pixel * s.heads * s.channels;
                const T weight = weights[point] * corners[i].weight;
                T dot = 0;
                for (int64_t c = 0; c < s.channels; ++c) {
                  dot += grad[c] * value[row + c];
                  grad_value[row + c] += weight * grad[c];
                }
                to_weight += corners[i].weight * dot;
                to_x += corners[i].slope_x * dot;
                to_y += corners[i].slope_y * dot;
              }
              grad_weights[point] = to_weight;
              grad_offsets[2 * point] = weights[point] * to_x;
              grad_offsets[2 * point + 1] = weights[point] * to_y;
            });
      }
    }
  });
}

at::Tensor forward(const at::Tensor& value, const at::Tensor& level_shapes,
                   const at::Tensor& reference, const at::Tensor& offsets,
                   const at::Tensor& weights) {
  const auto levels = read_levels(level_shapes);
  const Sizes s = check(value, levels, reference, offsets, weights);
  auto output = at::empty({s.batch, s.queries, s.heads * s.channels}, value.options());
  AT_DISPATCH_FLOATING_TYPES(value.scalar_type(), "ms_deform_attn", [&] {
    forward_kernel<scalar_t>(s, levels, value.data_ptr<scalar_t>(),
                             reference.data_ptr<scalar_t>(), offsets.data_ptr<scalar_t>(),
                             weights.data_ptr<scalar_t>(), output.data_ptr<scalar_t>());
  });
  return output;
}

std::vector<at::Tensor> backward(const at::Tensor& value, const at::Tensor& level_shapes,
                                 const at::Tensor& reference, const at::Tensor& offsets,
                                 const at::Tensor& weights, const at::Tensor& grad_output) {
  const auto levels = read_levels(level_shapes);
  const Sizes s = check(value, levels, reference, offsets, weights);
  auto grad_value = at::zeros_like(value);
  auto grad_offsets = at::empty_like(offsets);
  auto grad_weights = at::empty_like(weights);
  AT_DISPATCH_FLOATING_TYPES(value.scalar_type(), "ms_deform_attn_backward", [&] {
    backward_kernel<scalar_t>(s, levels, value.data_ptr<scalar_t>(),
                              reference.data_ptr<scalar_t>(), offsets.data_ptr<scalar_t>(),
                              weights.data_ptr<scalar_t>(), grad_output.data_ptr<scalar_t>(),
                              grad_value.data_ptr<scalar_t>(), grad_offsets.data_ptr<scalar_t>(),
                              grad_weights.data_ptr<scalar_t>());
  });
  return {grad_value, grad_offsets, grad_weights};
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("forward", &forward);
  m.def("backward", &backward);
}
