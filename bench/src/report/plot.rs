//! A plot as an SVG drawing.

use anyhow::anyhow;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// What is drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Plot {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    pub shape: Shape,
}

/// One of its axes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Axis {
    pub label: String,
    pub log: bool,
}

/// Lines over both axes, or bars along the first.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    Lines(Vec<Line>),
    Bars(Vec<Bar>),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// A bar with the ends of its confidence interval, if there is one.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    pub name: String,
    pub value: f64,
    pub interval: Option<(f64, f64)>,
}

const WIDTH: u32 = 920;
const HEIGHT: u32 = 420;
/// Height of a bar with its gap.
const BAR: u32 = 26;
/// What is not a bar.
const AROUND_BARS: u32 = 110;
/// Told apart by most eyes (Okabe and Ito), then darker and lighter ones.
const COLOURS: [RGBColor; 14] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(80, 80, 80),
    RGBColor(148, 52, 110),
    RGBColor(0, 90, 60),
    RGBColor(120, 60, 0),
    RGBColor(150, 150, 150),
    RGBColor(60, 40, 140),
    RGBColor(170, 170, 0),
    RGBColor(200, 0, 0),
];

impl Axis {
    /// A linear one.
    pub fn linear(label: &str) -> Self {
        Self { label: label.to_owned(), log: false }
    }

    /// A logarithmic one.
    pub fn log(label: &str) -> Self {
        Self { label: label.to_owned(), log: true }
    }

    /// Where a value stands: logarithms are taken here, so that every chart below is linear.
    fn place(&self, value: f64) -> f64 {
        if self.log { value.max(1e-3).log10() } else { value }
    }

    fn text(&self, place: f64) -> String {
        let value = if self.log { 10f64.powf(place) } else { place };
        match value.abs() {
            100.0.. => format!("{value:.0}"),
            1.0.. => format!("{value:.1}"),
            _ => format!("{value:.2}"),
        }
    }

    /// From the least to the most of these values, with some room.
    fn range(&self, values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
        let places: Vec<f64> = values.filter(|value| value.is_finite()).map(|value| self.place(value)).collect();
        let least = places.iter().copied().fold(f64::INFINITY, f64::min);
        let most = places.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if !least.is_finite() || !most.is_finite() {
            return 0.0..1.0;
        }
        let room = ((most - least) * 0.05).max(if self.log { 0.05 } else { 1e-6 });
        let from = if self.log { least - room } else { least.min(0.0) };
        from..most + room
    }
}

impl Plot {
    /// The drawing.
    pub fn svg(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        let height = match &self.shape {
            Shape::Lines(_) => HEIGHT,
            Shape::Bars(bars) => BAR * bars.len() as u32 + AROUND_BARS,
        };
        {
            let area = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
            let drawn = match &self.shape {
                Shape::Lines(lines) => self.lines(&area, lines),
                Shape::Bars(bars) => self.bars(&area, bars),
            };
            drawn.map_err(|error| anyhow!("draw {}: {error}", self.title))?;
            area.present().map_err(|error| anyhow!("draw {}: {error}", self.title))?;
        }
        Ok(text)
    }

    fn lines(&self, area: &Area<'_>, lines: &[Line]) -> Result<(), Box<dyn std::error::Error>> {
        area.fill(&WHITE)?;
        let points = || lines.iter().flat_map(|line| &line.points);
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, ("sans-serif", 17))
            .margin(10)
            .x_label_area_size(42)
            .y_label_area_size(62)
            .build_cartesian_2d(self.x.range(points().map(|p| p.0)), self.y.range(points().map(|p| p.1)))?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc(&self.x.label)
            .y_desc(&self.y.label)
            .x_label_formatter(&|place| self.x.text(*place))
            .y_label_formatter(&|place| self.y.text(*place))
            .draw()?;
        for (index, line) in lines.iter().enumerate() {
            let style = COLOURS[index % COLOURS.len()].stroke_width(2);
            let places = line.points.iter().map(|(x, y)| (self.x.place(*x), self.y.place(*y)));
            chart
                .draw_series(LineSeries::new(places, style))?
                .label(&line.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE.mix(0.85))
            .border_style(RGBColor(200, 200, 200))
            .draw()?;
        Ok(())
    }

    fn bars(&self, area: &Area<'_>, bars: &[Bar]) -> Result<(), Box<dyn std::error::Error>> {
        area.fill(&WHITE)?;
        let ends = |bar: &Bar| bar.interval.map_or([bar.value; 2], |(low, high)| [low, high]);
        let mut range = self.x.range(bars.iter().flat_map(ends));
        // A bar begins at what one is compared with.
        range.start = if self.x.log { range.start.min(0.0) } else { range.start };
        let start = range.start;
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, ("sans-serif", 17))
            .margin(10)
            .x_label_area_size(42)
            .build_cartesian_2d(range, bars.len() as f64..0.0)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .light_line_style(WHITE)
            .x_desc(&self.x.label)
            .x_label_formatter(&|place| self.x.text(*place))
            .draw()?;
        for (index, bar) in bars.iter().enumerate() {
            let (top, middle) = (index as f64 + 0.12, index as f64 + 0.5);
            let colour = COLOURS[index % COLOURS.len()];
            let end = self.x.place(bar.value);
            chart
                .draw_series([Rectangle::new([(start, top), (end, index as f64 + 0.88)], colour.mix(0.4).filled())])?;
            let mut label = format!("{}  {}", bar.name, self.x.text(end));
            if let Some((low, high)) = bar.interval {
                let (from, to) = (self.x.place(low), self.x.place(high));
                chart.draw_series([PathElement::new([(from, middle), (to, middle)], BLACK.stroke_width(2))])?;
                label.push_str(&format!(" [{}–{}]", self.x.text(from), self.x.text(to)));
            }
            let style = TextStyle::from(("sans-serif", 13)).pos(Pos::new(HPos::Left, VPos::Center));
            chart.draw_series([Text::new(format!(" {label}"), (start, middle), style)])?;
        }
        Ok(())
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_bars_are_drawn_with_their_names_even_without_points() {
        let plot = |shape| Plot { title: "T".into(), x: Axis::log("µs"), y: Axis::linear("%"), shape };
        let lines = vec![
            Line { name: "one".into(), points: vec![(100.0, 0.0), (1000.0, 100.0)] },
            Line { name: "none".into(), points: vec![] },
        ];
        let svg = plot(Shape::Lines(lines)).svg().unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("one") && svg.contains("none"), "{svg}");
        let bar = Bar { name: "two".into(), value: 2.0, interval: Some((1.5, 2.5)) };
        let svg = plot(Shape::Bars(vec![bar])).svg().unwrap();
        assert!(svg.contains("two") && svg.contains("2.0 [1.5–2.5]"), "{svg}");
        assert!(plot(Shape::Lines(vec![])).svg().is_ok() && plot(Shape::Bars(vec![])).svg().is_ok());
    }

    #[test]
    fn logarithmic_axes_show_the_values_themselves() {
        let axis = Axis::log("µs");
        assert_eq!(axis.text(axis.place(1000.0)), "1000");
        assert_eq!(Axis::linear("x").text(2.5), "2.5");
    }
}
