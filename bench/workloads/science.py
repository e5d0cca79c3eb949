# Prints "ready" when numpy, scipy and pandas have each done a little.
print("starting", flush=True)
import numpy, pandas, scipy.stats

a = numpy.linspace(0, 1, 1000)
slope = scipy.stats.linregress(a, 2 * a).slope
mean = pandas.DataFrame({"a": a, "b": a > 0.5}).groupby("b").a.mean().sum()
print(f"ready: numpy {numpy.__version__}, slope {slope:.1f}, mean {mean:.1f}", flush=True)
