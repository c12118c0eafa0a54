// The deformable step of DCNv4: each group of channels sums what it finds at nine moved points, by weights. A point between
// pixels is interpolated bilinearly; what lies outside the map counts as zero.
#pragma once

#include "map_pass.h"

namespace {

using vssm::Deform;

constexpr int kPoints = 9;

// The four pixels around a point, and how much each counts.
struct Corners {
    int64_t pixel[4];  // within the image; -1: outside the map
    float part[4];
    float down, right;  // from the upper left pixel to the point, 0 to 1
    bool far;           // none of them is on the map
};

// Around point p of the pixel in this row and column. Points go down columns, from the upper left one.
VSSM_INLINE Corners corners(const Deform &d, int64_t row, int64_t column, int p, const float *numbers) {
    Corners c;
    const float x = static_cast<float>(column + p / 3 - 1) + numbers[2 * p];
    const float y = static_cast<float>(row + p % 3 - 1) + numbers[2 * p + 1];
    c.far = !(x > -1 && y > -1 && x < static_cast<float>(d.width) && y < static_cast<float>(d.height));
    if (c.far) {
        c.down = c.right = x != x ? x : y != y ? y : 0;  // a point that is nowhere leaves NaN, one far away nothing
        return c;
    }
    const int64_t left = static_cast<int64_t>(x + 1) - 1, top = static_cast<int64_t>(y + 1) - 1;
    c.right = x - static_cast<float>(left);
    c.down = y - static_cast<float>(top);
    for (int i = 0; i < 4; ++i) {
        const int64_t to_y = top + i / 2, to_x = left + i % 2;
        const bool inside = to_y >= 0 && to_y < d.height && to_x >= 0 && to_x < d.width;
        c.pixel[i] = inside ? to_y * d.width + to_x : -1;
        c.part[i] = (i / 2 ? c.down : 1 - c.down) * (i % 2 ? c.right : 1 - c.right);
    }
    return c;
}

// A unit is a row of an image.
static void deform(const Deform &d, int64_t unit, void *) {
    const int64_t channels = d.groups * d.group_channels, row = unit % d.height;
    const float *image = d.x + unit / d.height * d.height * d.width * channels;
    for (int64_t at = 0; at < d.width * d.groups; ++at) {
        const int64_t column = at / d.groups, group = at % d.groups;
        const float *numbers = d.numbers + (unit * d.width * d.groups + at) * 3 * kPoints;
        const float *from = image + group * d.group_channels;
        const float *sources[4 * kPoints];
        float parts[4 * kPoints];
        int count = 0;
        float nowhere = 0;
        for (int p = 0; p < kPoints; ++p) {
            const Corners c = corners(d, row, column, p, numbers);
            const float weight = numbers[2 * kPoints + p];
            if (c.far) nowhere += c.down * weight;
            for (int i = 0; i < 4 && !c.far; ++i) {
                if (c.pixel[i] < 0) continue;
                sources[count] = from + c.pixel[i] * channels;
                parts[count++] = c.part[i] * weight;
            }
        }
        float *to = d.y + (unit * d.width + column) * channels + group * d.group_channels;
        for (int64_t channel = 0; channel < d.group_channels; channel += kLanes) {
            const int64_t left = d.group_channels - channel;
            const int lanes = left < kLanes ? static_cast<int>(left) : kLanes;
            Vec sum = splat(nowhere);
            for (int i = 0; i < count; ++i)
                sum += parts[i] * (lanes == kLanes ? load(sources[i] + channel) : load_lanes(sources[i] + channel, lanes));
            store_lanes(to + channel, lanes, sum);
        }
    }
}

// A unit is a group of an image, so that no two units add to the same place.
static void deform_grad(const Deform &d, int64_t unit, void *) {
    const int64_t channels = d.groups * d.group_channels, pixels = d.height * d.width;
    const int64_t image = unit / d.groups, group = unit % d.groups;
    const int64_t start = image * pixels * channels + group * d.group_channels;
    const float *x = d.x + start;
    float *grad_x = d.grad_x + start;
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
        const int64_t at = ((image * pixels + pixel) * d.groups + group) * 3 * kPoints;
        const float *numbers = d.numbers + at, *grad = d.grad + start + pixel * channels;
        float *to = d.grad_numbers + at;
        for (int p = 0; p < kPoints; ++p) {
            const Corners c = corners(d, pixel / d.width, pixel % d.width, p, numbers);
            const float weight = numbers[2 * kPoints + p];
            float found[4] = {};  // what the gradient and each corner have in common
            for (int i = 0; i < 4 && !c.far; ++i) {
                if (c.pixel[i] < 0) continue;
                const float *from = x + c.pixel[i] * channels;
                float *add = grad_x + c.pixel[i] * channels;
                const float part = c.part[i] * weight;
                Vec sum = {};
                for (int64_t channel = 0; channel < d.group_channels; channel += kLanes) {
                    const int64_t left = d.group_channels - channel;
                    const int lanes = left < kLanes ? static_cast<int>(left) : kLanes;
                    const Vec g = load_lanes(grad + channel, lanes);
                    sum += g * load_lanes(from + channel, lanes);
                    store_lanes(add + channel, lanes, load_lanes(add + channel, lanes) + part * g);
                }
                found[i] = sum_lanes(sum);
            }
            const float above = found[0] * (1 - c.right) + found[1] * c.right;
            const float below = found[2] * (1 - c.right) + found[3] * c.right;
            const float before = found[0] * (1 - c.down) + found[2] * c.down;
            const float behind = found[1] * (1 - c.down) + found[3] * c.down;
            to[2 * p] = weight * (behind - before);
            to[2 * p + 1] = weight * (below - above);
            to[2 * kPoints + p] = above * (1 - c.down) + below * c.down;
        }
    }
}

}  // namespace
